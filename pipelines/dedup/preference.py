"""Which of several copies stays: two numbers a document, compared one after the other; of equals the first document stays."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa

from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, numbers


class Preference:
    """
    Args:
        by_length: the longest text stays, unless the stage says otherwise.
    """

    def __init__(self, stage: Dedup, by_length: bool = True) -> None:
        self._stage = stage
        self._by_length = by_length and stage.keep == "longest"
        self.columns = ["source"] * bool(stage.prefer)  # that `of` looks at
        self.columns += [] if stage.quality is None else ["metadata", stage.quality]

    @property
    def plain(self) -> bool:
        """All documents are equals."""
        return not (self._by_length or self.columns)

    def of(self, batch: pa.RecordBatch, lengths: Array) -> tuple[Array, Array]:
        """(trust, worth) of each row, uint32 and float64: the lowest stays. Trust is 1 or more; 0 is for documents that stay anyway.

        Args:
            lengths: bytes of the texts.
        """
        trust, worth = np.ones(len(batch), np.uint32), np.zeros(len(batch))
        if self._by_length:
            worth = -lengths.astype(float)
        elif self._stage.quality is not None:
            worth = -np.nan_to_num(numbers(batch, self._stage.quality, "quality"), nan=-np.inf)
        if self._stage.prefer:
            trust += _patterns(batch, self._stage.prefer)
        return trust, worth


def ordered(trust: Array, worth: Array) -> Array:
    """The places of documents in the order of preference."""
    return np.lexsort((worth, trust))


def _patterns(batch: pa.RecordBatch, patterns: list[str]) -> Array:
    """The number of the first pattern that each row's `source` fits."""
    sources = batch.column("source").dictionary_encode()
    first = [
        next((i for i, pattern in enumerate(patterns) if fnmatchcase(name or "", pattern)), len(patterns))
        for name in sources.dictionary.to_pylist()
    ]
    indices = sources.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.array([*first, len(patterns)], np.uint32)[indices]
