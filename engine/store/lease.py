"""One at a time: who makes an artifact holds its lease, and whoever lost it can't write any more.

On disk the lease is a lock on `work/ARTIFACT.lock`, which the kernel lets go when the last process that has it open ends: those that
work inherit it. The file says who holds it, and has a token. Before anything is written into the artifact, the token in the file
is compared with one's own: a process that stood still while another took over (the file was removed by hand, a file server lost
its locks) is refused.

In a store that can't lock the lease is an object, `leases/ARTIFACT.json`, which its holder writes anew every third of `ttl_s`. Whoever waits
takes over once it has not changed for that long, by the clock of the one who waits, so that no two clocks are compared; at once
where the holder is a process of this machine that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from engine.errors import Busy, StageFailed
from engine.redaction import redacted
from engine.store.artifact import MANIFEST, TAKEN_OVER
from engine.store.files import StoreFiles
from engine.store.versions import Version, etag, put_file_version, put_version, read_version, safe
from engine.text.visible import visible

POLL_S = 0.2
HELD = "held"  # the event that a worker has its part in the lease
CANT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
Say = Callable[[str], None]


class Superseded(StageFailed):
    """Another process has taken over what this one was writing."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: of this turn, never used again.
        command: what a person called.
        since: local time, as `14:02`; never compared with anything.
        machine: this start of this machine, this set of process ids.
        born: when the process began, in ticks since then.
    """

    token: str
    command: str
    pid: int
    host: str
    since: str
    machine: str
    born: int

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since})"

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.machine == _machine() != "" and _born(self.pid) != self.born

    @property
    def stopped(self) -> bool:
        """Whether it is known to stand still (SIGSTOP, Ctrl-Z)."""
        return self.machine == _machine() != "" and _state(self.pid) == "T"


class Lease(Protocol):
    """The right to write one artifact. It can be pickled; a copy can check it."""

    @property
    def artifact(self) -> str: ...
    @property
    def descriptors(self) -> tuple[int, ...]:
        """What processes must inherit for the lease to live as long as they do."""
        ...

    def check(self) -> None:
        """
        Raises:
            Superseded: another has it.
        """
        ...

    def told(self) -> dict[str, Any]:
        """What another process needs to `take_part` in it."""
        ...

    def rest(self) -> None:
        """Another process keeps it from now on."""
        ...

    def release(self) -> None: ...


@contextlib.contextmanager
def lease(
    store: StoreFiles,
    artifact: str,
    *,
    no_wait: bool = False,
    say: Say = lambda text: None,
    pause: Callable[[float], None] = time.sleep,
) -> Generator[Lease]:
    """Hold the lease of an artifact; wait for it where another has it.

    Args:
        no_wait: raise `Busy` instead of waiting.
        say: is told for whom this waits.
        pause: waits for some seconds; what it raises ends the waiting.

    Raises:
        Busy: another has it.
    """
    queue = FileQueue(store, artifact, say) if store.local else ObjectQueue(store, artifact, say)
    known: Holder | bool | None = False
    while isinstance(taken := queue.take(), Other):
        if no_wait:
            raise Busy(f"{taken} is making {artifact} right now. Without `--no-wait` this run waits for it.")
        if taken.holder != known:
            say(f"waits for {taken}{taken.hint}")
            known = taken.holder
        pause(POLL_S)
    store.lease = taken
    try:
        yield taken
    finally:
        store.lease = None
        taken.release()


def take_part(store: StoreFiles, told: dict[str, Any]) -> Lease:
    """In a process that works for the holder: the same lease."""
    if store.local:
        return FileLease(told["artifact"], told["token"], Path(told["path"]))
    kept = ObjectLease(store, told["artifact"], Holder(**told["holder"]), told["version"], told["ttl_s"])
    kept.keep()
    return kept


@dataclass(frozen=True)
class Other:
    """Another process that has the lease; its name is not there yet in the moment in which it takes it."""

    holder: Holder | None

    def __str__(self) -> str:
        return str(self.holder) if self.holder else "another run"

    @property
    def hint(self) -> str:
        if self.holder and self.holder.stopped:
            pid = self.holder.pid
            return f", which stands still: `kill -CONT {pid}` has it go on, `kill -9 {pid}` ends it"
        return ""


# -- on disk -----------------------------------------------------------------------------------------------------------


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
            raise Superseded(_superseded(self.artifact, holder))

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
            holder = _me()
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


# -- in a store that can't lock ----------------------------------------------------------------------------------------


class ObjectLease:
    """An object that its holder keeps alive by writing it anew, from a thread."""

    def __init__(self, store: StoreFiles, artifact: str, holder: Holder, version: Version, ttl_s: float) -> None:
        self.artifact = artifact
        self._store, self._holder, self._version, self._ttl_s = store, holder, version, ttl_s
        self._beat = 0
        self._changing = threading.Lock()
        self._ends = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_changing", "_ends", "_store")}
        return {**kept, "_store": StoreFiles(self._store.url)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.Lock(), _ends=threading.Event())

    @property
    def descriptors(self) -> tuple[int, ...]:
        return ()

    def check(self) -> None:
        there = _read_lease(self._store, self.artifact)
        if there is None or there.holder.token != self._holder.token:
            raise Superseded(_superseded(self.artifact, there and there.holder))

    def told(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact, "holder": asdict(self._holder), "version": self._version, "ttl_s": self._ttl_s,
        }  # fmt: skip

    def keep(self) -> None:
        """Keep it alive from now on."""
        threading.Thread(target=self._keep, name="lease", daemon=True).start()

    def _keep(self) -> None:
        while not self._ends.wait(self._ttl_s / 3):
            with contextlib.suppress(OSError):  # the network is away: the next time, or another takes over
                if not self._renew():
                    return

    def _renew(self) -> bool:
        """Write it anew; False if another has it."""
        with self._changing:
            for _ in range(3):
                self._beat += 1
                data = _lease_bytes(self._holder, self._ttl_s, f"{os.getpid()}.{self._beat}")
                if version := put_version(self._store, data, self._version, *_lease_place(self.artifact)):
                    self._version = version
                    return True
                there = _read_lease(self._store, self.artifact)
                if there is None or there.holder.token != self._holder.token:
                    return False
                self._version = there.version  # the one who works for us, or we for them, was faster
            return True

    def rest(self) -> None:
        self._ends.set()

    def release(self) -> None:
        self.rest()
        with contextlib.suppress(OSError):
            there = _read_lease(self._store, self.artifact)
            if there and there.holder.token == self._holder.token:
                self._store.fs.rm_file(self._store.path(*_lease_place(self.artifact)))


@dataclass
class ObjectQueue:
    """Those who want the lease of an object store."""

    store: StoreFiles
    artifact: str
    say: Say
    seen: tuple[Version, float] | None = None  # the lease of another as it was seen first, and when

    def take(self) -> ObjectLease | Other:
        there = _read_lease(self.store, self.artifact)
        if there:
            now = time.monotonic()
            if self.seen is None or self.seen[0] != there.version:
                self.seen = there.version, now
            if not there.holder.gone and now - self.seen[1] <= there.ttl_s:
                return Other(there.holder)
        elif self.seen is None and not safe(self.store):
            self.say(
                f"the store {self.store.url} has no conditional writes: start one run at a time on it. Of two that make the same "
                "artifact the later goes on, the other is refused."
            )
        holder, ttl_s = _me(), float(os.environ.get("FLYWHEEL_LEASE_S") or 30)
        data = _lease_bytes(holder, ttl_s, "0")
        version = put_version(self.store, data, there.version if there else None, *_lease_place(self.artifact))
        if version is None:  # another was faster, or it was ours whose answer got lost
            there = _read_lease(self.store, self.artifact)
            if there is None or there.holder.token != holder.token:
                return Other(there.holder if there else None)
            version = there.version
        if there and safe(self.store):
            _bar(self.store, self.artifact, holder.token)
        made = ObjectLease(self.store, self.artifact, holder, version, ttl_s)
        made.keep()
        return made


def put_leased(store: StoreFiles, data: bytes, *, once: bool, place: tuple[str, ...]) -> str:
    """Write a file of an artifact where nothing can be renamed: only in place of what was there when the lease was looked at, so
    that a write that was on its way while another took over changes nothing.

    Args:
        once: there may be none yet.

    Returns:
        its SHA-256.

    Raises:
        Superseded: another has the lease, or was faster.
    """
    if not safe(store):
        store.fence(*place)
        return StoreFiles.put(store, data, *place)
    version: Version | None = None
    for _ in range(5):
        store.fence(*place)
        if put_version(store, data, version, *place):
            return hashlib.sha256(data).hexdigest()
        there = read_version(store, *place)  # a version of before, or ours whose answer got lost
        if there and there[0] == data:
            return hashlib.sha256(data).hexdigest()
        if once and there and not is_bar(there[0]):
            break
        version = there[1] if there else None
    raise Superseded(_superseded(place[1], None))


def put_file_leased(store: StoreFiles, source: Path, *place: str) -> None:
    """`put_leased` for a local file of any size, which goes.

    Raises:
        Superseded: another has the lease, or was faster.
    """
    for _ in range(5):
        version = etag(store, *place) if safe(store) else None
        store.fence(*place)
        if not safe(store):
            store.fs.put_file(str(source), store.path(*place))
        elif not put_file_version(store, source, version, *place):
            continue
        source.unlink()
        return
    raise Superseded(_superseded(place[1], None))


BAR = f'{{"{TAKEN_OVER}": '.encode()


def is_bar(manifest: bytes) -> bool:
    """Whether this is no manifest, but what stands in its place since somebody took over."""
    return manifest.startswith(BAR)


def _bar(store: StoreFiles, artifact: str, token: str) -> None:
    """Have the manifest that the one before may be writing right now be refused: another version is there, and ours replaces it."""
    place = ("artifacts", artifact, MANIFEST)
    for _ in range(5):
        there = read_version(store, *place)
        if there and not is_bar(there[0]):
            return  # it was finished
        if put_version(store, BAR + json.dumps(token).encode() + b"}", there[1] if there else None, *place):
            return


@dataclass(frozen=True)
class _Stated:
    holder: Holder
    ttl_s: float
    version: Version


def _lease_place(artifact: str) -> tuple[str, str]:
    return "leases", f"{artifact}.json"


def _lease_bytes(holder: Holder, ttl_s: float, beat: str) -> bytes:
    return json.dumps({"holder": asdict(holder), "ttl_s": ttl_s, "beat": beat}).encode()


def _read_lease(store: StoreFiles, artifact: str) -> _Stated | None:
    found = read_version(store, *_lease_place(artifact))
    if found is None:
        return None
    data, version = found
    try:
        stated = cast(dict[str, Any], json.loads(data))
        return _Stated(Holder(**stated["holder"]), float(stated["ttl_s"]), version)
    except (ValueError, TypeError, KeyError):  # garbled: nobody keeps it alive, and it ends as any other
        return _Stated(Holder("", "an unreadable lease", 0, "?", "?", "", 0), 30, version)


# -- who we are --------------------------------------------------------------------------------------------------------


def _me() -> Holder:
    told = visible(redacted(shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])), one_line=True)
    return Holder(
        uuid.uuid4().hex, told if len(told) <= 200 else told[:197] + "...", os.getpid(), socket.gethostname(),
        time.strftime("%H:%M"), _machine(), _born(os.getpid()),
    )  # fmt: skip


def _superseded(artifact: str, holder: Holder | None) -> str:
    by = f"{holder} has taken over" if holder else "another run has taken over, and may be done with it"
    return (
        f"this process lost its turn: {by} {artifact} while it stood still, or its lock was removed. What it was about to write "
        "was not written. Run it again: what is finished is taken from the store."
    )


@cache
def _machine() -> str:
    """This start of this machine and this set of process ids; empty where that can't be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _born(pid: int) -> int:
    """When a process began, in ticks since the machine did; -1 if there is none (or only what is left of it)."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] != "Z" else -1


def _state(pid: int) -> str:
    return (_stat(pid) or ["?"])[0]
