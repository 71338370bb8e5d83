"""Pretokens that a tokenizer has looked at on this machine, by a digest of each: so that later processes need not ask it again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipelines.kernels.compiled import cache_folders, origin
from pipelines.texts.columns import Array
from pipelines.tokenize.byte_level import table

MOST_BYTES = 64 << 20  # of a file; what comes after is looked at in each process


class Checked:
    """A file for each tokenizer, version of `tokenizers` and state of the kernels, to which processes append. What of it is lost or garbage
    costs another look, no more.

    Attributes:
        table, shift: of the digests (`pipelines.kernels.pretoken_table`).
    """

    def __init__(self, model: str) -> None:
        told = hashlib.sha256(model.encode() + version("tokenizers").encode() + origin()).hexdigest()
        self._files = [folder / f"checked-{told[:24]}" for folder in cache_folders()]
        digests = np.zeros(0, np.uint64)
        for file in self._files:
            with contextlib.suppress(OSError):
                size = file.stat().st_size
                digests = np.fromfile(file, np.uint64, min(size, 2 * MOST_BYTES) // 8)
                break
        digests = np.unique(digests[digests != 0])
        self.table, self.shift = table(digests, digests)

    def add(self, digests: Array) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                _append(file, digests.tobytes())
                return


def _append(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < MOST_BYTES:
            os.write(descriptor, data)
    finally:
        os.close(descriptor)
