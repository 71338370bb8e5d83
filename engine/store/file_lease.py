"""A lease on disk: a lock on `work/ARTIFACT.lock`, which the kernel lets go when the last process that has it open ends: those that work
inherit it. The file says who holds it, and has a token. Before anything is written into the artifact, the token in the file is compared with
one's own: a process that stood still while another took over (the file was removed by hand, a file server lost its locks) is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.store.files import StoreFiles
from engine.store.holder import Holder, Other, Superseded, me, superseded

CANT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
Say = Callable[[str], None]


@dataclass(frozen=True)
class FileLease:
    artifact: str
    token: str
    path: Path
    descriptor: int = -1

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.descriptor,)

    def check(self) -> None:
        holder = read_holder(self.path)
        if holder is None or holder.token != self.token:
            raise Superseded(superseded(self.artifact, holder))

    def told(self) -> dict[str, Any]:
        return {"artifact": self.artifact, "token": self.token, "path": str(self.path)}

    def rest(self) -> None:
        """The kernel keeps it."""

    def release(self) -> None:
        holder = read_holder(self.path)
        if holder and holder.token == self.token:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


@dataclass
class FileQueue:
    """Those who want the lock of a file."""

    store: StoreFiles
    artifact: str
    say: Say

    def take(self) -> FileLease | Other:
        """
        Raises:
            OSError: the file can't be made.
        """
        path = lock_file(self.store, self.artifact)
        with locked(path, wait=False) as lock:
            if lock is None:
                return Other(read_holder(path))
            if not lock.real:
                self.say(
                    f"the file system of {path.parent} can't lock files: start one run at a time on this store. Of two that make "
                    "the same artifact the later goes on, the other is refused."
                )
            holder = me()
            data = json.dumps(asdict(holder)).encode()
            os.ftruncate(lock.descriptor, 0)
            os.pwrite(lock.descriptor, data, 0)
            return FileLease(self.artifact, holder.token, path, lock.keep())


@dataclass
class Lock:
    """A locked file.

    Attributes:
        real: False where the file system can't lock.
    """

    descriptor: int
    real: bool
    kept: bool = False

    def keep(self) -> int:
        """The descriptor, to be closed by who asked."""
        self.kept = True
        return self.descriptor


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Generator[Lock | None]:
    """A lock on a file, which is made for it; None where another has it.

    The file goes when the lock is let go. Another may have opened it before, and would then lock a file that has no name
    any more while a third makes a new one: so a lock counts only if the file still stands where it was opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        lock = Lock(descriptor, real=True)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            except OSError as error:
                if error.errno not in CANT_LOCK:
                    raise
                lock.real = False
            if not _stands(path, descriptor):
                continue
            try:
                yield lock
            finally:
                if not lock.kept and _stands(path, descriptor):
                    path.unlink(missing_ok=True)
            return
        finally:
            if not lock.kept:
                os.close(descriptor)


def lock_file(store: StoreFiles, artifact: str) -> Path:
    return store.workplace() / f"{artifact}.lock"


def is_held(store: StoreFiles, artifact: str) -> bool:
    """Whether somebody has the lock. Looks, and leaves nothing."""
    try:
        with lock_file(store, artifact).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_holder(path: Path) -> Holder | None:
    """Who holds a file's lock, as the file says."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _stands(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
