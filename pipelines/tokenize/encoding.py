"""Slices of documents as token ids, to be packed in order by one who needs to look at none of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from engine.stage.job import Job
from engine.stage.slices import Slice
from pipelines.texts.columns import Array, column, texts_of
from pipelines.tokenize.encoder import Encoder


@dataclass(frozen=True)
class Encoded:
    """Documents one after the other as ids, each with the one that ends it.

    Attributes:
        names: their ids (D).
        begins: where each begins in `tokens` (D), int64.
        bytes: of their texts in UTF-8.
    """

    names: pa.Array
    begins: Array
    tokens: Array
    bytes: int


@dataclass(frozen=True)
class Batch:
    """Rows that are packed together: those to train on, and those that are held out."""

    rows: int
    data: Encoded
    validation: Encoded


class Encoding:
    """Encodes slices of the documents, batch by batch.

    Args:
        rows: of a batch.
        validation: the share of documents to hold out.
    """

    def __init__(self, job: Job, encoder: Encoder, rows: int, validation: float) -> None:
        self.job, self.encoder, self.rows, self.validation = job, encoder, rows, validation

    def __call__(self, piece: Slice) -> list[Batch]:
        table = self.job.table(piece, ["id", "text"])
        return [self._batch(batch) for batch in table.to_batches(self.rows)]

    def _batch(self, batch: pa.RecordBatch) -> Batch:
        names, texts = batch.column("id"), texts_of(batch.column("text"))
        ids = self.encoder.encode(texts, self.encoder.eos)
        tokens, sizes = ids.tokens, np.diff(ids.ends, prepend=0)
        if not self.validation:
            size = int(texts.offsets[-1] - texts.offsets[0])
            none_held = Encoded(names.slice(0, 0), sizes[:0], tokens[:0], 0)
            return Batch(len(batch), Encoded(names, ids.ends - sizes, tokens, size), none_held)
        held = shares(names.to_pylist(), 0) < self.validation

        def documents(chosen: Array) -> Encoded:
            begins = np.cumsum(sizes[chosen]) - sizes[chosen]
            size = int(np.diff(texts.offsets)[chosen].sum())
            return Encoded(names.filter(column(chosen)), begins, tokens[np.repeat(chosen, sizes)], size)

        return Batch(len(batch), documents(~held), documents(held))


def shares(ids: list[str], use: int) -> Array:
    """A number in [0, 1) for each id, decided by its digest; another one for each use."""
    return np.array([xxhash.xxh3_64_intdigest(i.encode(), seed=use) for i in ids], dtype=np.uint64) / 2.0**64
