"""How often each pretoken stands in the documents: all that training a BPE has to know of them. Slices are counted apart and added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import pre_tokenizers

from engine.stage.job import Job
from engine.stage.slices import Slice
from pipelines.kernels.characters import pretokens_table
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts, column, strings, texts_of
from pipelines.tokenize.byte_level import alphabet
from pipelines.tokenize.encoding import shares

_count = kernel("pipelines.kernels.pretoken_counts", "count")
_add = kernel("pipelines.kernels.pretoken_counts", "add")
_rehash = kernel("pipelines.kernels.pretoken_table", "rehash")

BATCH = 1 << 18  # bytes of texts that are counted at once
MASKS, PADDING = 6, 64  # as the kernels have them
TEXT, PLACE, KNOWN, BYTES, PLAIN = range(5)


@dataclass(frozen=True)
class Words:
    """Pretokens one after the other (uint8), where each ends (W), and how often each was met (W), int64."""

    data: Array
    ends: Array
    counts: Array

    @property
    def bounds(self) -> Array:
        return np.append(np.zeros(1, np.int64), self.ends)


class PretokenCounts:
    """Counts GPT-2's pretokens."""

    def __init__(self) -> None:
        self._table, self._shift = np.zeros(2 << 16, np.uint64), 64 - 16
        self._counts = np.zeros(1 << 16, np.int64)
        self._words, self._bounds = np.empty(1 << 20, np.uint8), np.zeros(1 + (1 << 16), np.int64)
        self._known = 0

    def add_texts(self, texts: Texts) -> None:
        first = 0
        while first < len(texts):
            after = int(np.searchsorted(texts.offsets, texts.offsets[first] + BATCH, side="right")) - 1
            after = max(after, first + 1)
            self._add_batch(texts, first, after)
            first = after

    def add(self, words: Words) -> None:
        tally = np.zeros(5, np.int64)
        data = np.append(words.data, np.zeros(PADDING, np.uint8))
        while True:
            tally[KNOWN] = self._known
            done = _add(
                data,
                words.bounds,
                words.counts,
                self._table,
                self._shift,
                self._counts,
                self._words,
                self._bounds,
                tally,
            )
            self._known = int(tally[KNOWN])
            if done:
                return
            self._grow()

    def words(self) -> Words:
        """Those that were met, the same ones in the same order whatever they were counted in."""
        lengths, counts = np.diff(self._bounds[: self._known + 1]), self._counts[: self._known]
        texts = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), self._known, [None, pa.py_buffer(self._bounds), pa.py_buffer(self._words)]
        )
        met = np.flatnonzero(counts)
        rank: Any = pc.call_function("array_sort_indices", [texts.take(column(met))])
        order = met[rank.to_numpy()]
        chosen = texts.take(column(order))
        data = np.frombuffer(chosen.buffers()[2] or b"", np.uint8)
        return Words(data[: int(lengths[order].sum())], np.cumsum(lengths[order]), counts[order])

    def _add_batch(self, texts: Texts, first: int, after: int) -> None:
        begin, end = int(texts.offsets[first]), int(texts.offsets[after])
        data = np.zeros(end - begin + PADDING, np.uint8)
        data[: end - begin] = texts.data[begin:end]
        offsets, alone = texts.offsets[first : after + 1] - begin, np.zeros(after - first, np.uint8)
        blocks = len(data) // 64 + 2
        masks, begins = np.empty(MASKS * blocks, np.uint64), np.empty(blocks, np.uint64)
        tally = np.zeros(5, np.int64)
        while True:
            tally[KNOWN] = self._known
            done = _count(
                data, offsets, pretokens_table(), masks, begins, self._table, self._shift, self._counts, self._words,
                self._bounds, alone, tally,
            )  # fmt: skip
            self._known = int(tally[KNOWN])
            if done:
                break
            self._grow()
        for i in np.flatnonzero(alone).tolist():
            self._add_alone(data[offsets[i] : offsets[i + 1]].tobytes().decode())

    def _add_alone(self, text: str) -> None:
        """A text with characters that this Python does not know."""
        cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytes_of = {letter: byte for byte, letter in enumerate(alphabet())}
        words = [bytes(bytes_of[letter] for letter in word) for word, _ in cut.pre_tokenize_str(text)]
        ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        self.add(Words(np.frombuffer(b"".join(words), np.uint8), ends, np.ones(len(words), np.int64)))

    def _grow(self) -> None:
        """Make room for what stopped the kernel."""
        larger = np.zeros(2 * len(self._table), np.uint64)
        self._shift -= 1
        _rehash(self._table, larger, self._shift)
        self._table = larger
        self._counts = np.append(self._counts, np.zeros_like(self._counts))
        self._bounds = np.append(self._bounds, np.zeros_like(self._bounds))
        self._words = np.append(self._words, np.empty(max(len(self._words), 64 << 10), np.uint8))


class Counting:
    """Counts the pretokens of slices of the documents, as far as a tokenizer is trained on them.

    Args:
        rows: of a batch.
        validation: the share of documents that are held out.
        share: of the others, to train on.
    """

    def __init__(self, job: Job, rows: int, validation: float, share: float) -> None:
        self.job, self.rows, self.validation, self.share = job, rows, validation, share

    def __call__(self, piece: Slice) -> tuple[int, int, Words]:
        """Documents and bytes, all of them, and the pretokens of those to train on."""
        counts, size = PretokenCounts(), 0
        table = self.job.table(piece, ["id", "text"])
        for batch in table.to_batches(self.rows):
            ids: list[str] = batch.column("id").to_pylist()
            size += int(np.diff(texts_of(batch.column("text")).offsets).sum())
            chosen = shares(ids, 0) >= self.validation
            if self.share < 1:
                chosen &= shares(ids, 1) < self.share
            counts.add_texts(texts_of(batch.column("text").filter(column(chosen))))
        return piece.rows, size, counts.words()


class Sizing:
    """Bytes of the texts of slices."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, piece: Slice) -> int:
        return int(np.diff(texts_of(self.job.table(piece, ["text"]).column("text")).offsets).sum())


def count_texts(texts: list[str]) -> Words:
    """The pretokens of a few texts."""
    counts = PretokenCounts()
    counts.add_texts(texts_of(strings(texts)))
    return counts.words()
