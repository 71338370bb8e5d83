"""Slices of documents as token ids, to be packed in order by one who needs to look at none of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from engine.stage.job import Job
from engine.stage.slices import Slice
from pipelines.texts.columns import Array, Texts, column, texts_of
from pipelines.tokenize.encoder import Encoder


@dataclass(frozen=True)
class Documents:
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
    data: Documents
    validation: Documents


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
        ids = self.encoder.encode(texts)
        held = shares(names.to_pylist(), 0) < self.validation
        return Batch(len(batch), self._documents(names, texts, ids, ~held), self._documents(names, texts, ids, held))

    def _documents(self, names: pa.Array, texts: Texts, ids: list[Array], chosen: Array) -> Documents:
        of_these = [ids[i] for i in np.flatnonzero(chosen).tolist()]
        ends = np.cumsum([len(one) + 1 for one in of_these], dtype=np.int64)
        begins = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
        tokens = np.full(ends[-1] if len(ends) else 0, self.encoder.eos, self.encoder.dtype)
        for begin, one in zip(begins.tolist(), of_these, strict=True):
            tokens[begin : begin + len(one)] = one
        return Documents(names.filter(column(chosen)), begins, tokens, int(np.diff(texts.offsets)[chosen].sum()))


def shares(ids: list[str], use: int) -> Array:
    """A number in [0, 1) for each id, decided by its digest; another one for each use."""
    return np.array([xxhash.xxh3_64_intdigest(i.encode(), seed=use) for i in ids], dtype=np.uint64) / 2.0**64
