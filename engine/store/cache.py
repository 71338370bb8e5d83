"""Files of stores elsewhere, kept on this machine by their SHA-256, up to a bound: all runs and processes share them.

An entry is a folder named by the digest, with the bytes in `data`; when the folder was touched tells when it was last used. Bytes are compared
with the digest as they come in, and again once a run; what is not what it should be is fetched anew. Where there is no room, views that no
process has open go first (`view`), then the entries that were not used for the longest time. What is open, or in a view that is, stays.

The bound is `$FLYWHEEL_CACHE_GB`, else 16 GB, or a quarter of the free disk where that is less.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO

from engine.errors import Damaged, StageFailed, UserError
from engine.shortage import in_words
from engine.store.files import scratch_home
from engine.store.known_digests import digest_of, note_written

DEFAULT, SHARE = 16_000_000_000, 4  # bytes; of the free disk at most 1 / SHARE
SLACK = 8  # 1 / SLACK of the bound is made free at once, so that room is not looked for at every file
DATA, PARTIAL = "data", "partial"
VIEWS = "inputs"  # in the folder for work under way of each store (`view`)
VIEWERS = 4  # files of a view that come at once
Chunks = Callable[[], Iterable[bytes]]

_held: dict[Path, int] = {}  # views that this process has open, until it ends


def home() -> Path:
    return scratch_home() / "cache"


def bound(held: int = 0) -> int:
    """Bytes that the entries may take.

    Args:
        held: what they take now.

    Raises:
        UserError: `$FLYWHEEL_CACHE_GB` is no number.
    """
    if told := os.environ.get("FLYWHEEL_CACHE_GB"):
        try:
            return max(0, int(float(told) * 1e9))
        except (ValueError, OverflowError):
            raise UserError(f"FLYWHEEL_CACHE_GB is `{told}`: expected a number of GB, as in `20`.") from None
    home().mkdir(parents=True, exist_ok=True)
    return min(DEFAULT, (shutil.disk_usage(home()).free + held) // SHARE)


def holds(digest: str) -> bool:
    return (_folder(digest) / DATA).exists()


def opened(digest: str, size: int, chunks: Chunks) -> IO[bytes]:
    """A file with these bytes, opened to read; fetched where it is not here.

    Args:
        chunks: the bytes, in order.

    Raises:
        Damaged: what was fetched has other bytes.
    """
    folder = _folder(digest)
    while True:
        with contextlib.suppress(FileNotFoundError):
            file = (folder / DATA).open("rb")
            if digest_of(file) == digest:
                with contextlib.suppress(OSError):  # somebody takes it away meanwhile: it is open
                    os.utime(folder)
                return file
            file.close()
            (folder / DATA).unlink(missing_ok=True)
        with _writing(folder) as partial:
            if partial is None:
                continue
            if (found := _fill(partial, size, chunks())) != digest:
                raise Damaged(f"{digest[:12]}... was to come, and it was {found[:12]}...")
            file = _again(partial)
        _note(folder, digest)
        return file


def take(size: int, chunks: Chunks) -> tuple[str, IO[bytes]]:
    """Fetch bytes whose digest is not known: (SHA-256, a file opened to read)."""
    place = home() / f"unnamed-{uuid.uuid4().hex}"
    with _writing(place) as partial:
        assert partial
        digest = _fill(partial, size, chunks())
        file = _again(partial)
    target = _folder(digest)
    with contextlib.suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        if not (target / DATA).exists():
            (place / DATA).rename(target / DATA)
            _note(target, digest)
    shutil.rmtree(place, ignore_errors=True)
    return digest, file


def keep(digest: str, data: bytes) -> None:
    """Bytes that this machine has just written elsewhere, and will read soon."""
    if len(data) * SLACK > bound() or holds(digest):
        return
    with contextlib.suppress(OSError, StageFailed):  # a full disk: it is fetched then
        with _writing(_folder(digest)) as partial:
            if partial:
                _fill(partial, len(data), [data])
        _note(_folder(digest), digest)


def keep_file(digest: str, source: Path) -> None:
    """`keep` for a file, which goes."""
    size, folder = source.stat().st_size, _folder(digest)
    if size * SLACK <= bound() and not holds(digest):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(size)
            source.rename(folder / DATA)
            _note(folder, digest)
    source.unlink(missing_ok=True)


def view(place: Path, files: dict[str, tuple[str, Callable[[], IO[bytes]]]]) -> None:
    """A folder with these files, each a second name of an entry. It stays while this process lives.

    Args:
        files: path in the folder -> (SHA-256, what opens the entry).
    """
    _hold(place)

    def lacks(item: tuple[str, tuple[str, Any]]) -> bool:
        try:
            return digest_of(place / item[0]) != item[1][0]
        except FileNotFoundError:
            return True

    if missing := [item for item in files.items() if lacks(item)]:
        with ThreadPoolExecutor(min(VIEWERS, len(missing))) as viewers:
            for _ in viewers.map(lambda item: _give_name(place / item[0], *item[1]), missing):
                pass


def _give_name(target: Path, digest: str, open_entry: Callable[[], IO[bytes]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    named = target.with_name(f"{target.name}.{uuid.uuid4().hex}partial")
    while not named.exists():
        with open_entry() as file, contextlib.suppress(FileNotFoundError):  # it was taken away meanwhile
            try:
                os.link(_folder(digest) / DATA, named)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOSPC):
                    raise
                with in_words(named), named.open("wb") as copy:  # a file system without second names
                    shutil.copyfileobj(file, copy, 1 << 20)
    named.replace(target)
    note_written(target, digest)  # a second name changes what the file system says of it
    note_written(_folder(digest) / DATA, digest)


def drop_view(place: Path) -> bool:
    """Take a view away; False where a process has it open."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


# -- entries ---------------------------------------------------------------------------------------------------------------


def _folder(digest: str) -> Path:
    return home() / digest[:2] / digest


@contextlib.contextmanager
def _writing(folder: Path) -> Generator[BinaryIO | None]:
    """A file that becomes the entry's when the block ends; None where another process made it meanwhile, for which this waits."""
    partial = folder / PARTIAL
    while True:
        with in_words(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the folder has just been taken away
            continue
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if _stands(partial, descriptor):
                    yield file
                    file.flush()
                    with contextlib.suppress(FileNotFoundError):  # the folder was taken away: who has it open reads on
                        partial.replace(folder / DATA)
                    return
                if (folder / DATA).exists():
                    yield None
                    return
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a child may have inherited it


def _fill(partial: BinaryIO, size: int, chunks: Iterable[bytes]) -> str:
    """Write a file; its SHA-256."""
    _make_room(size)
    sha256 = hashlib.sha256()
    partial.truncate(0)
    partial.truncate(size)  # what it will take counts from now on
    for chunk in chunks:
        sha256.update(chunk)
        with in_words(home()):
            partial.write(chunk)
    with in_words(home()):
        partial.truncate()
        partial.flush()
    return sha256.hexdigest()


def _again(partial: BinaryIO) -> IO[bytes]:
    """The same file, to read, though it may be taken away as soon as it is in its place."""
    file = os.fdopen(os.dup(partial.fileno()), "rb")
    file.seek(0)
    return file


def _note(folder: Path, digest: str) -> None:
    note_written(folder / DATA, digest)


def _stands(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# -- room ------------------------------------------------------------------------------------------------------------------


def _make_room(size: int) -> None:
    """Count bytes that are about to come, and take away what was not used for the longest time where they are too many."""
    place = home() / "bytes"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        told = file.read()
        held = (int(told) if told.isdigit() else 0) + size
        if held > (most := bound(held - size)):
            held = _evict(max(0, most - size - most // SLACK)) + size
        file.truncate(0)
        file.write(b"%d" % held)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)


def _evict(most: int) -> int:
    """Take entries away until those that stay have at most so many bytes, if they may go; the bytes that stay."""
    for place in scratch_home().glob(f"*/{VIEWS}/*"):
        drop_view(place)
    entries = sorted(_entries())
    held = sum(size for _, size, _, _ in entries)
    for _, size, folder, free in entries:
        if held <= most:
            break
        if free and _remove(folder):
            held -= size
    return held


def _entries() -> Iterator[tuple[int, int, Path, bool]]:
    """(when it was last used, bytes, folder, whether it may go) of each entry, and of what is being written."""
    for place in [*home().glob("[0-9a-f][0-9a-f]/*"), *home().glob("unnamed-*")]:
        with contextlib.suppress(OSError):
            used = place.stat().st_mtime_ns
            data = [(place / name).stat() for name in (DATA, PARTIAL) if (place / name).exists()]
            linked = any(told.st_nlink > 1 for told in data)
            yield used, sum(told.st_size for told in data), place, not linked


def _remove(folder: Path) -> bool:
    """Take an entry away, unless it is being written, or a view has got it meanwhile."""
    try:
        descriptor = os.open(folder / PARTIAL, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = -1
    try:
        if descriptor >= 0:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # left by a process that was killed
    except OSError:
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        if (folder / DATA).stat().st_nlink > 1:
            return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


# -- views -----------------------------------------------------------------------------------------------------------------


def _hold(place: Path) -> None:
    """Keep a view from being taken away while this process lives."""
    if place in _held and _stands(place, _held[place]):
        return
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system that can't lock folders: they are kept for good there
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _stands(place, descriptor):
            _held[place] = descriptor
            return
        os.close(descriptor)
