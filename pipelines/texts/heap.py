"""What was freed given back to the system: glibc keeps pages above which something still lives, or may soon."""

from __future__ import annotations

import contextlib
import ctypes

import pyarrow as pa


def trim() -> None:
    """Between two phases, so that the second one's peak does not stand on what the first one left."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
