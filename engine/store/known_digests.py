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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import xxhash

from engine.store.this_machine import this_machine

Algorithm = Literal["sha256", "xxh3"]
SHARED = "FLYWHEEL_DIGESTS"
NAME = "flywheel-digests"
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
    file = os.memfd_create(NAME) if hasattr(os, "memfd_create") else None
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


@dataclass(frozen=True)
class Told:
    """What a process that was not started by the run needs to share with those that were, if it is on their machine."""

    machine: str
    place: str


def told() -> Told | None:
    """None where nothing is shared."""
    place = os.environ.get(SHARED)
    return Told(this_machine(), place) if place and this_machine() else None


def take_part(told: Told | None) -> None:
    """Share what a run knows, in a process that others may have started (a cluster's); on another machine it begins with nothing, and
    looks at each file once.
    """
    os.environ.pop(SHARED, None)  # of whatever the cluster was started by
    if told is None or told.machine != this_machine():
        return
    with contextlib.suppress(OSError):  # held open: the run may end, and its number be another process's
        file = os.open(told.place, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.environ[SHARED] = f"/proc/{os.getpid()}/fd/{file}"


def _name(stat: os.stat_result, algorithm: str) -> str:
    return f"{algorithm}:{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _object_name(place: str, version: str) -> str:
    return f"object:{xxhash.xxh3_128_hexdigest(f'{place} {version}'.encode())}"


def _digest(file: IO[bytes], algorithm: Algorithm) -> str:
    digest: Any = hashlib.sha256() if algorithm == "sha256" else xxhash.xxh3_128()
    while block := file.read(1 << 20):  # as much as the processor's cache holds
        digest.update(block)
    return digest.hexdigest()


def _shared() -> str | None:
    """The file that a run shares, if it is that one: for a process that outlives the run the descriptor may be of any other file."""
    place = os.environ.get(SHARED)
    try:
        return place if place and str(Path(place).readlink()).startswith(f"/memfd:{NAME} ") else None
    except OSError:
        return None


def _lookup(name: str) -> str | None:
    global _seen
    found = _known.get(name)
    if found or not (shared := _shared()):
        return found
    with contextlib.suppress(OSError), Path(shared).open("rb") as file:  # what other processes of this run found out
        begin = _seen  # other threads may read at the same time
        file.seek(begin)
        lines, _, _ = file.read().rpartition(b"\n")
        _seen = begin + len(lines) + 1 if lines else begin
        for line in lines.decode("ascii", "replace").splitlines():
            key, _, digest = line.partition(" ")
            _known[key] = digest
    return _known.get(name)


def _note(name: str, digest: str) -> None:
    _known[name] = digest
    if shared := _shared():
        with contextlib.suppress(OSError), Path(shared).open("ab", buffering=0) as file:
            file.write(f"{name} {digest}\n".encode())  # in one go, so that lines of several processes don't mix
