"""What a disk refuses, in words: it is full, may not be written, or fails."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path

from engine.errors import FlywheelError, StageFailed, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def refusal(error: Exception, place: str | Path = "") -> FlywheelError | None:
    """What the system said of a file, in our words; None where it is nothing that a disk says.

    Args:
        place: where it happened, if the error does not name a file.
    """
    if not isinstance(error, OSError):  # safetensors and torch wrap it
        full = "No space left" in str(error) or "os error 28" in str(error)
        return refusal(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), place) if full else None
    where = place or error.filename or "a file"
    said = error.strerror or str(error)
    if error.errno in FULL:
        return StageFailed(
            f"{where} can't be written: {said}. What was committed stays; make room (`flywheel gc --dry-run` shows what this "
            "store could do without) and run again: it goes on from there."
        )
    if error.errno in CLOSED:
        return UserError(
            f"{where} can't be written: {said}. Make it writable, or name another store (`--store`, `FLYWHEEL_STORE`)."
        )
    if error.errno == errno.EIO:
        return StageFailed(
            f"{where}: the disk fails ({said}). What was committed stays; see to the disk, or name another store, and run again."
        )
    return None


@contextlib.contextmanager
def in_words(place: str | Path) -> Generator[None]:
    """What goes wrong while this is written or read is said in words.

    Raises:
        StageFailed: the disk is full, or fails. UserError: it may not be written.
    """
    try:
        yield
    except OSError as error:
        told = refusal(error, place)
        if told is None:
            raise
        raise told from error
