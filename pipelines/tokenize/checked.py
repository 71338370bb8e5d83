"""Pretokens that a tokenizer has looked at on this machine, by a digest of each: so that later processes need not ask it again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from importlib.metadata import version

import numpy as np

from pipelines.kernels.compiled import cache_folders, origin
from pipelines.texts.columns import Array
from pipelines.tokenize.byte_level import table

MOST_BYTES = 64 << 20  # of a file; what comes after is looked at in each process


class Checked:
    """A file in the user's cache for each tokenizer, version of `tokenizers` and state of the kernels, to which processes append. What of it is lost or garbage
    costs another look, no more.

    Attributes:
        table, shift: of the digests (`pipelines.kernels.pretoken_table`).
    """

    def __init__(self, model: str) -> None:
        told = hashlib.sha256(model.encode() + version("tokenizers").encode() + origin()).hexdigest()
        self._file = cache_folders()[-1] / f"checked-{told[:24]}"
        digests = np.zeros(0, np.uint64)
        with contextlib.suppress(OSError):
            digests = np.fromfile(self._file, np.uint64, 2 * MOST_BYTES // 8)
        digests = np.unique(digests[digests != 0])
        self.table, self.shift = table(digests, digests)

    def add(self, digests: Array) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                if os.fstat(descriptor).st_size < MOST_BYTES:
                    os.write(descriptor, digests.tobytes())
            finally:
                os.close(descriptor)
