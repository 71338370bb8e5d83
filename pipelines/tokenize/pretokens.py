"""Encoding by a cache over pretokens: the ids of a Hugging Face byte-level BPE, a hundred times faster.

A byte-level BPE cuts a text into pretokens (by a regular expression) and encodes each by itself, so the ids of a pretoken never depend on its
neighbours; and text repeats its pretokens. Here a kernel cuts Arrow's bytes into pretokens, 64 bytes at a time, looks up each in a table, and merges
what is not there yet by the tokenizer's own merges.

Each new pretoken's ids are shown to be right by another way than merging (`pipelines.tokenize.derivations`), from tokens each of which the tokenizer
itself has made of its bytes when it was loaded. What can't be shown it is asked for; where it says something else its ids go into the table, and the texts are
encoded anew. A text with a character that this Python's Unicode tables do not know, or a pretoken of more than a kilobyte, goes to the tokenizer whole.

A pretoken is known by its bytes, one of more than seven by 63 bits: among a million of them, two are taken for one with probability 5e-8.
"""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipelines.kernels.characters import pretokens_table
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts
from pipelines.tokenize.byte_level import ByteLevel, alphabet

_encode = kernel("pipelines.kernels.pretoken_ids", "encode")
_ids_at = kernel("pipelines.kernels.pretoken_ids", "ids_at")
_unproven = kernel("pipelines.kernels.bpe_proof", "unproven")
_rehash = kernel("pipelines.kernels.pretoken_table", "rehash")
_holding = kernel("pipelines.kernels.literals", "holding")

MOST = 4_000_000  # pretokens that are remembered; then the table starts anew
BATCH = 1 << 18  # bytes of texts that are encoded at once, so that buffers stay in the processor's cache
NEW = 1 << 14  # pretokens that are looked at at once
LONGEST, AHEAD, MASKS, PADDING = 1024, 128, 6, 64  # as the kernels have them
SLACK = 4  # ids that a kernel may write after the last
TEXT, PLACE, COUNT, BEGUN, KNOWN, ARENA, LEARNED, PLAIN = range(8)


@dataclass(frozen=True)
class Ids:
    """The ids of texts one after the other (T), and where those of each end (D, int64)."""

    tokens: Array
    ends: Array

    def of_each(self) -> list[Array]:
        return np.split(self.tokens, self.ends[:-1]) if len(self.ends) else []


class PretokenCache:
    """Encodes columns of texts.

    Args:
        tokenizer: takes what looks like a special token for text.
        parts: what it is made of.
        dtype: of the ids.

    Attributes:
        asked: pretokens that the tokenizer was asked for.
        corrected: those of them for which it said something else than its merges.
        whole: texts that it encoded itself.
    """

    def __init__(self, tokenizer: Tokenizer, parts: ByteLevel, dtype: Any = np.uint32) -> None:
        self._tokenizer: Any = tokenizer
        self._parts, self._dtype = parts, dtype
        self._model: Any = tokenizer.model
        self._room = (
            np.empty(LONGEST, np.uint32),
            np.empty(LONGEST, np.uint64),
            np.empty(AHEAD, np.int64),
            np.empty(AHEAD, np.uint64),
        )
        self._news, self._doubts = np.empty((NEW, 3), np.int64), np.empty(NEW, np.int64)
        self._steps = parts.derivations.made_by(tokenizer.model)
        self._literals = np.frombuffer(b"".join(parts.literals), np.uint8)
        self._literal_bounds = np.cumsum([0, *map(len, parts.literals)], dtype=np.int64)
        self._masks, self._begins = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self.asked = self.corrected = self.whole = 0
        self._clear()

    def _clear(self) -> None:
        self._table, self._shift = np.zeros(2 << 16, np.uint64), 64 - 16
        self._arena = np.empty(1 << 16, np.uint32)  # ids of pretokens that have many
        self._known = self._used = 0

    def encode(self, texts: Texts, last: int = -1) -> Ids:
        """The ids of each text, and after them `last` if it is none below 0."""
        source, own = (self._composed(texts), texts) if self._parts.composed else (texts, texts)
        # Room for an id a byte, of which a part is touched: memory that is not costs nothing.
        size = int(source.offsets[-1] - source.offsets[0]) if len(texts) else 0
        tokens, ends = np.empty(size + len(texts) + SLACK, self._dtype), np.empty(len(texts), np.int64)
        first = count = 0
        while first < len(texts):
            after = int(np.searchsorted(source.offsets, source.offsets[first] + BATCH, side="right")) - 1
            after = max(after, first + 1)
            made = self._encode_batch(source, own, first, after, last, tokens[count:], ends[first:after])
            ends[first:after] += count
            count, first = count + made, after
        return Ids(tokens[:count], ends)

    def _encode_batch(
        self, texts: Texts, own: Texts, first: int, after: int, last: int, out: Array, ends: Array
    ) -> int:
        """Write the ids of some texts, and where those of each end; how many there are."""
        begin, end = int(texts.offsets[first]), int(texts.offsets[after])
        size = end - begin
        data = np.zeros(size + PADDING, np.uint8)
        data[:size] = texts.data[begin:end]
        offsets = texts.offsets[first : after + 1] - begin
        if size // 64 + 3 > len(self._begins):
            self._masks = np.empty(MASKS * (size // 64 + 3), np.uint64)
            self._begins = np.empty(size // 64 + 3, np.uint64)
        parts, again = self._parts, True
        tally = np.zeros(8, np.int64)
        while again:
            tally[:] = 0
            done, again = 0, False
            while not done and not again:
                tally[[KNOWN, ARENA]] = self._known, self._used
                tally[LEARNED] = 0
                done = _encode(
                    data, offsets, parts.family, pretokens_table(), self._masks, self._begins, self._table, self._shift, self._arena,
                    parts.byte_ids, parts.merges, parts.merge_shift, parts.vocabulary, parts.vocabulary_shift, last, *self._room,
                    out, ends, self._news, tally,
                )  # fmt: skip
                self._known, self._used = int(tally[KNOWN]), int(tally[ARENA])
                again = self._check(data, int(tally[LEARNED]))
                if not done:
                    self._grow()
        count = int(tally[COUNT])
        alone = ends < 0
        if parts.literals:
            held = np.zeros(len(ends), np.uint8)
            if _holding(data, offsets, self._literals, self._literal_bounds, held):
                alone |= held.astype(bool)
        if alone.any():
            count = self._mend(own, first, out, np.where(ends < 0, -1 - ends, ends), alone, last, ends)
        return count

    def _mend(self, own: Texts, first: int, out: Array, made: Array, alone: Array, last: int, ends: Array) -> int:
        """Write the ids of some texts as the tokenizer has them between those that are `made`."""
        cuts = [own.text(first + i) for i in np.flatnonzero(alone).tolist()]
        encoded = self._tokenizer.encode_batch_fast(
            [d[a:b].tobytes().decode() for d, a, b in cuts], add_special_tokens=False
        )
        self.whole += len(encoded)
        rows = np.split(out[: made[-1]], made[:-1])
        for i, one in zip(np.flatnonzero(alone).tolist(), encoded, strict=True):
            rows[i] = np.array([*one.ids, last] if last >= 0 else one.ids, self._dtype)
        ends[:] = np.cumsum([len(row) for row in rows], dtype=np.int64)
        out[: ends[-1]] = np.concatenate(rows)
        return int(ends[-1])

    def _check(self, data: Array, new: int) -> bool:
        """Look at what is new; whether the tokenizer says something else of some of it."""
        corrected = self.corrected
        parts, known = self._parts, self._parts.derivations
        doubts = _unproven(
            data, self._news, new, self._table, self._arena, known.spelling, known.bounds, self._steps, known.merges, known.merge_shift,
            parts.vocabulary, parts.vocabulary_shift, self._room[0], self._doubts,
        )  # fmt: skip
        for begin, end, slot in self._news[self._doubts[:doubts]].tolist():
            word = "".join([alphabet()[byte] for byte in data[begin:end].tolist()])
            ids = [token.id for token in self._model.tokenize(word)]
            if ids != self._known_ids(slot):
                self._correct(slot, ids)
        self.asked += doubts
        return self.corrected > corrected

    def _known_ids(self, slot: int) -> list[int]:
        return self._room[0][: _ids_at(slot, self._table, self._arena, self._room[0])].tolist()

    def _correct(self, slot: int, ids: list[int]) -> None:
        self.corrected += 1
        if self._used + len(ids) >= len(self._arena):
            self._arena = np.concatenate([self._arena, np.empty_like(self._arena)])
        self._table[slot + 1] = self._used << 2
        self._arena[self._used] = len(ids)
        self._arena[self._used + 1 : self._used + 1 + len(ids)] = ids
        self._used += 1 + len(ids)

    def _grow(self) -> None:
        """Make room for what stopped the kernel."""
        if self._known > MOST:
            self._clear()
            return
        if self._known >= 3 * (len(self._table) >> 3):
            larger = np.zeros(2 * len(self._table), np.uint64)
            self._shift -= 1
            _rehash(self._table, larger, self._shift)
            self._table = larger
        if self._used + LONGEST >= len(self._arena):
            self._arena = np.concatenate([self._arena, np.empty_like(self._arena)])

    def _composed(self, texts: Texts) -> Texts:
        """In NFC as the tokenizer has it, whose tables are older than Python's: it leaves marks of later in the order in which they stand."""
        changed: dict[int, bytes] = {}
        data, offsets = texts.data, texts.offsets.tolist()
        if not len(texts) or data[offsets[0] : offsets[-1]].max(initial=0) < 0x80:
            return texts
        for i, (a, b) in enumerate(itertools.pairwise(offsets)):
            text = data[a:b].tobytes()
            if not text.isascii() and not unicodedata.is_normalized("NFC", whole := text.decode()):
                changed[i] = self._tokenizer.normalizer.normalize_str(whole).encode()
        if not changed:
            return texts
        rows = [changed.get(i, data[a:b].tobytes()) for i, (a, b) in enumerate(itertools.pairwise(offsets))]
        return Texts(np.frombuffer(b"".join(rows), np.uint8), np.cumsum([0, *map(len, rows)], dtype=np.int64))
