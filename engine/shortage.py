"""What a machine can run out of, in words: disk, memory, open files, processes; a disk, or a server, that can't be written, or fails.

The error comes from wherever the write was: Python, pyarrow, SQLite, a library in Rust. The kernel's words are in all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from engine.errors import StageFailed, UserError
from engine.remote_faults import AGAIN, remote_fault

_DISK = f"Make room (`flywheel gc --dry-run` tells what could go); {AGAIN}."
ADVICE = {
    errno.ENOSPC: ("there is no space left on the disk", _DISK),
    errno.EDQUOT: ("your quota of this disk is used up", _DISK),
    errno.EFBIG: ("a file would become larger than the limit (`ulimit -f`)", f"Raise the limit; {AGAIN}."),
    errno.EROFS: ("the disk is read-only", "Mount it writable, or put the store elsewhere (`--store`, FLYWHEEL_STORE)."),
    errno.EACCES: ("permission denied", "Make it writable for you, or put the store elsewhere (`--store`, FLYWHEEL_STORE)."),
    errno.EPERM: ("not permitted", "Make it writable for you, or put the store elsewhere (`--store`, FLYWHEEL_STORE)."),
    errno.EIO: ("the disk failed (input/output error)", f"Look at the machine's log (`dmesg`); {AGAIN}, on a disk that works."),
    errno.ESTALE: ("the file server forgot the file (stale handle)", f"Mount it anew; {AGAIN}."),
    errno.EMFILE: ("too many files are open", f"Raise the limit (`ulimit -n 65536`); {AGAIN}."),
    errno.ENFILE: ("the machine has too many open files", f"Close other programs; {AGAIN}."),
    errno.ENOMEM: ("memory ran out", f"{{lower}}, close other programs, or take a machine with more; {AGAIN}."),
    errno.EAGAIN: ("no process or thread can be started", f"Raise the limit (`ulimit -u`), or close other programs; {AGAIN}."),
    errno.ENAMETOOLONG: ("a file's name is too long for the disk", "Take a shorter one."),
    errno.EHOSTDOWN: ("the file server is down", f"When it is back, {AGAIN}."),
}  # fmt: skip
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a stage may have that takes memory, the most first.
FIELDS = (
    "micro_batch",
    "partition",
    "memory_gb",
    "replicas",
    "gpu_share",
    "max_model_len",
    "max_length",
    "block",
    "batch",
)
_SAID = {os.strerror(number).lower(): number for number in ADVICE if number not in (errno.EAGAIN, errno.EPERM)}
_SAID.update({
    "database or disk is full": errno.ENOSPC,  # SQLite's
    "attempt to write a readonly database": errno.EROFS,
    "disk i/o error": errno.EIO,
    "can't start new thread": errno.EAGAIN,
    "can't allocate memory": errno.ENOMEM,  # torch's
    "out of memory": errno.ENOMEM,  # CUDA's
    "unable to allocate": errno.ENOMEM,  # NumPy's
    "unable to mmap": errno.ENOMEM,  # safetensors'
})  # fmt: skip
_RUST = re.compile(r"\(os error (\d+)\)")


def shortage(error: BaseException, fields: Iterable[str] = ()) -> str | None:
    """What the machine has run out of and what to do, if this error, or one that it was made of, says so; else None.

    Args:
        fields: of the stage's configuration, to name those that take memory.
    """
    if told := next(filter(None, map(remote_fault, _chain(error))), None):
        return told
    for one in _chain(error):
        number = _number(one)
        if number is None:
            continue
        what, advice = ADVICE[number]
        place = one.filename if isinstance(one, OSError) and one.filename else None
        where = f": {os.fsdecode(place) if isinstance(place, (str, bytes)) else place}" if place else ""
        return f"{what}{where}. {advice.format(lower=lower(fields))}"
    return None


@contextlib.contextmanager
def in_words(place: str | Path) -> Generator[None]:
    """What the machine refuses while this place is written or read is said in words.

    Raises:
        UserError: it may not be written. StageFailed: the disk is full, or fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        words = shortage(OSError(error.errno, error.strerror, str(place)))
        raise (UserError if error.errno in CLOSED else StageFailed)(words) from error


def lower(fields: Iterable[str]) -> str:
    """What to lower where memory runs out, in words."""
    known = [f"`{name}`" for name in FIELDS if name in set(fields)][:3]
    return f"Lower {', '.join(known)}" if known else "Give the stage less at once"


def killed(number: int, fields: Iterable[str] = ()) -> str:
    """What it means that a process was ended by this signal."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    match number:
        case signal.SIGKILL:
            advice = ADVICE[errno.ENOMEM][1].format(lower=lower(fields))
            return f"was killed ({name}). The kernel does so where memory runs out: if nobody else did, {advice[0].lower()}{advice[1:]}"
        case signal.SIGBUS:
            return f"was killed ({name}): a file that it had in memory can't be read or written, as where a disk or /dev/shm is full."
        case signal.SIGXCPU:
            return f"was killed ({name}): its CPU time is up (`ulimit -t`)."
        case signal.SIGSEGV | signal.SIGABRT | signal.SIGILL | signal.SIGFPE:
            return f"crashed ({name})."
        case _:
            return f"was killed by signal {number} ({name})."


def _number(error: BaseException) -> int | None:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in ADVICE:
        return error.errno
    if isinstance(error, (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, ConnectionError)):
        return None
    said = str(error)
    if (rust := _RUST.search(said)) and int(rust[1]) in ADVICE:
        return int(rust[1])
    said = said.lower()
    return next((number for words, number in _SAID.items() if words in said), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
