"""The file that a benchmark of reward models comes in."""

from __future__ import annotations

from pathlib import Path

from engine.errors import UserError


def contents(file: Path) -> bytes:
    """Its bytes.

    Raises:
        UserError: it can't be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"the benchmark file {file} can't be read: {error.strerror or error}.") from None
