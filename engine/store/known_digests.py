"""Digests of files on this machine, each worked out once a run.

What tells that a file was not touched since is what the file system says of it: device, inode, size, and the times of its last change
to the nanosecond. The time of the inode's change can't be set back by a program, so that an edit shows even where size and time
of modification are the old ones. A run shares what it knows with its workers by a file in memory (`$FLYWHEEL_DIGESTS`), which goes with it:
the next run looks at everything again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any, Literal

import xxhash

Algorithm = Literal["sha256", "xxh3"]
SHARED = "FLYWHEEL_DIGESTS"
# A file that changed this short a time ago may change again without its times showing it: a file system's clock ticks.
TICK_NS, SECOND_NS = 20_000_000, 1_000_000_000

_known: dict[str, str] = {}
_seen = 0  # bytes of the shared file that are in `_known`


def digest_of(file: Path | IO[bytes], algorithm: Algorithm = "sha256") -> str:
    """The digest of a file's bytes: SHA-256, or 128 bits of XXH3. Worked out, unless this run did and the file is untouched.

    Args:
        file: a path, or one that is open, whose place is kept. To open first and compare then leaves no moment between the two.

    Raises:
        OSError: it can't be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return digest_of(opened, algorithm)
    before = os.fstat(file.fileno())
    if found := _lookup(_name(before, algorithm)):
        return found
    at, started = file.tell(), time.time_ns()
    file.seek(0)
    digest = _digest(file, algorithm)
    file.seek(at)
    coarse = before.st_mtime_ns % SECOND_NS == 0 and before.st_ctime_ns % SECOND_NS == 0
    settled = started - max(before.st_mtime_ns, before.st_ctime_ns) > (2 * SECOND_NS if coarse else TICK_NS)
    if settled and _name(os.fstat(file.fileno()), algorithm) == _name(before, algorithm):
        _note(_name(before, algorithm), digest)
    return digest


def note_written(file: Path, sha256: str) -> None:
    """A file of the store's was just put in its place with these bytes: nobody else writes there."""
    with contextlib.suppress(OSError):
        _note(_name(file.stat(), "sha256"), sha256)


def note_object(place: str, version: str, sha256: str) -> None:
    """This version (ETag) of an object in a store elsewhere has these bytes: it was written, or read, by this run."""
    _note(_object_name(place, version), sha256)


def digest_of_object(place: str, version: str) -> str | None:
    """The SHA-256 of that version of an object, where this run knows it."""
    return _lookup(_object_name(place, version))


def state(file: Path) -> str:
    """What the file system says of a file: equal as long as nobody touches it."""
    return _name(file.stat(), "xxh3")


@contextlib.contextmanager
def shared_digests() -> Generator[None]:
    """Know nothing at first, and share what is found out with the processes that are started meanwhile."""
    global _seen
    _known.clear()
    _seen = 0
    outer = os.environ.get(SHARED)
    file = os.memfd_create("flywheel-digests") if hasattr(os, "memfd_create") else None
    if file is not None:  # a file without a name, that ends with this process; others reach it by its descriptor
        os.environ[SHARED] = f"/proc/{os.getpid()}/fd/{file}"
    try:
        yield
    finally:
        os.environ.pop(SHARED, None)
        if outer is not None:
            os.environ[SHARED] = outer
        if file is not None:
            os.close(file)


def _name(told: os.stat_result, algorithm: str) -> str:
    return f"{algorithm}:{told.st_dev}:{told.st_ino}:{told.st_size}:{told.st_mtime_ns}:{told.st_ctime_ns}"


def _object_name(place: str, version: str) -> str:
    return f"object:{xxhash.xxh3_128_hexdigest(f'{place} {version}'.encode())}"


def _digest(file: IO[bytes], algorithm: Algorithm) -> str:
    digest: Any = hashlib.sha256() if algorithm == "sha256" else xxhash.xxh3_128()
    while block := file.read(1 << 20):  # as much as the processor's cache holds
        digest.update(block)
    return digest.hexdigest()


def _lookup(name: str) -> str | None:
    global _seen
    found, shared = _known.get(name), os.environ.get(SHARED)
    if found or not shared:
        return found
    with contextlib.suppress(OSError), Path(shared).open("rb") as file:  # what other processes of this run found out
        begin = _seen  # other threads may read at the same time
        file.seek(begin)
        told, _, _ = file.read().rpartition(b"\n")
        _seen = begin + len(told) + 1 if told else begin
        for line in told.decode("ascii", "replace").splitlines():
            key, _, digest = line.partition(" ")
            _known[key] = digest
    return _known.get(name)


def _note(name: str, digest: str) -> None:
    _known[name] = digest
    if shared := os.environ.get(SHARED):
        with contextlib.suppress(OSError), Path(shared).open("ab", buffering=0) as file:
            file.write(f"{name} {digest}\n".encode())  # in one go, so that lines of several processes don't mix
