"""Encoding by a cache over pretokens: the ids of a Hugging Face byte-level BPE, a hundred times faster.

A byte-level BPE cuts a text into pretokens (by a regular expression) and encodes each by itself, so the ids of a pretoken never depend on its
neighbours; and text repeats its pretokens. Here a kernel cuts Arrow's bytes into pretokens, 64 bytes at a time, looks up each in a table, and merges
what is not there yet by the tokenizer's own merges.

The tokenizer itself checks each pretoken once on a machine, when it is new: many at once, spelled in its own alphabet, so that neither its regular expression
nor its normalizer has to run. Where it says something else its ids go into the table, and the texts are encoded anew. A text with a character that
this Python's Unicode tables do not know, or a pretoken of more than a kilobyte, goes to the tokenizer whole.

A pretoken is known by its bytes, one of more than seven by 63 bits: among a million of them, two are taken for one with probability 5e-8.
"""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from pipelines.kernels.characters import pretokens_table
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts
from pipelines.tokenize.byte_level import ByteLevel, spelling
from pipelines.tokenize.checked import Checked

_encode = kernel("pipelines.kernels.pretoken_ids", "encode")
_rehash = kernel("pipelines.kernels.pretoken_table", "rehash")
_holding = kernel("pipelines.kernels.literals", "holding")

MOST = 4_000_000  # pretokens that are remembered; then the table starts anew
BATCH = 1 << 18  # bytes of texts that are encoded at once, so that buffers stay in the processor's cache
NEW = 1 << 14  # pretokens that are checked at once
LONGEST, AHEAD, MASKS, PADDING = 1024, 128, 6, 64  # as the kernels have them
TEXT, PLACE, COUNT, BEGUN, KNOWN, ARENA, LEARNED, SPELLED, LEARNT = range(9)  # of 10


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
        checked: the pretokens that it looked at before, if that is to be known.
        dtype: of the ids.

    Attributes:
        corrected: pretokens for which the tokenizer said something else than its merges.
        whole: texts that it encoded itself.
    """

    def __init__(
        self, tokenizer: Tokenizer, parts: ByteLevel, checked: Checked | None = None, dtype: Any = np.uint32
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._parts, self._checked, self._dtype = parts, checked, dtype
        self._seen = (checked.table, checked.shift) if checked else (np.zeros(4, np.uint64), 63)
        self._model: Any = Tokenizer(tokenizer.model)  # for what is cut and spelled already
        self._model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self._room = (
            np.empty(LONGEST, np.uint32),
            np.empty(LONGEST, np.uint64),
            np.empty(AHEAD, np.int64),
            np.empty(AHEAD, np.uint64),
        )
        self._news, self._digests = np.empty((NEW, 4), np.int64), np.empty(NEW, np.uint64)
        self._spelled, self._learnt = np.empty(NEW * 64, np.uint8), np.empty(NEW * 64, np.uint32)
        self._literals = np.frombuffer(b"".join(parts.literals), np.uint8)
        self._literal_bounds = np.cumsum([0, *map(len, parts.literals)], dtype=np.int64)
        self._masks, self._begins, self._out = np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint32)
        self.corrected = self.whole = 0
        self._clear()

    def _clear(self) -> None:
        self._table, self._shift = np.zeros(2 << 16, np.uint64), 64 - 16
        self._arena = np.empty(1 << 16, np.uint32)  # ids of pretokens that have many
        self._known = self._used = 0

    def encode(self, texts: Texts, last: int = -1) -> Ids:
        """The ids of each text, and after them `last` if it is none below 0."""
        source, own = (self._composed(texts), texts) if self._parts.composed else (texts, texts)
        tokens, ends = list[Array](), [np.zeros(1, np.int64)]
        first = 0
        while first < len(texts):
            after = int(np.searchsorted(source.offsets, source.offsets[first] + BATCH, side="right")) - 1
            after = max(after, first + 1)
            base = ends[-1][-1]
            made = self._encode_batch(source, own, first, after, last)
            tokens.append(made.tokens)
            ends.append(made.ends + base)
            first = after
        return Ids(np.concatenate(tokens) if tokens else np.empty(0, self._dtype), np.concatenate(ends)[1:])

    def _encode_batch(self, texts: Texts, own: Texts, first: int, after: int, last: int) -> Ids:
        begin, end = int(texts.offsets[first]), int(texts.offsets[after])
        size = end - begin
        data = np.zeros(size + PADDING, np.uint8)
        data[:size] = texts.data[begin:end]
        offsets = texts.offsets[first : after + 1] - begin
        if size + PADDING > len(self._out):
            self._masks = np.empty(MASKS * (size // 64 + 3), np.uint64)
            self._begins = np.empty(size // 64 + 3, np.uint64)
            self._out = np.empty(size + PADDING + 4, np.uint32)
        out = self._out if last < 0 else np.empty(size + PADDING + 4 + len(offsets), np.uint32)
        ends = np.empty(after - first, np.int64)
        parts, again = self._parts, True
        tally = np.zeros(10, np.int64)
        while again:
            tally[:] = 0
            done, again = 0, False
            while not done and not again:
                tally[[KNOWN, ARENA]] = self._known, self._used
                tally[[LEARNED, SPELLED, LEARNT]] = 0
                done = _encode(
                    data, offsets, parts.family, pretokens_table(), self._masks, self._begins, self._table, self._shift, self._arena,
                    parts.byte_ids, parts.merges, parts.merge_shift, parts.vocabulary, parts.vocabulary_shift, *self._seen, last,
                    spelling(), *self._room, out, ends, self._news, self._digests, self._spelled, self._learnt, tally,
                )  # fmt: skip
                self._known, self._used = int(tally[KNOWN]), int(tally[ARENA])
                again = self._check(tally)
                if not done:
                    self._grow()
        count = int(tally[COUNT])
        alone = ends < 0
        if parts.literals:
            held = np.zeros(len(ends), np.uint8)
            if _holding(data, offsets, self._literals, self._literal_bounds, held):
                alone |= held.astype(bool)
        if not alone.any():
            return Ids(out[:count].astype(self._dtype), ends)
        return self._mended(
            own, first, out[:count].astype(self._dtype), np.where(ends < 0, -1 - ends, ends), alone, last
        )

    def _mended(self, own: Texts, first: int, tokens: Array, ends: Array, alone: Array, last: int) -> Ids:
        """With the ids of some texts as the tokenizer has them."""
        cuts = [own.text(first + i) for i in np.flatnonzero(alone).tolist()]
        encoded = self._tokenizer.encode_batch_fast(
            [d[a:b].tobytes().decode() for d, a, b in cuts], add_special_tokens=False
        )
        self.whole += len(encoded)
        mended = np.split(tokens, ends[:-1])
        for i, one in zip(np.flatnonzero(alone).tolist(), encoded, strict=True):
            mended[i] = np.array([*one.ids, last] if last >= 0 else one.ids, self._dtype)
        return Ids(np.concatenate(mended), np.cumsum([len(one) for one in mended], dtype=np.int64))

    def _check(self, tally: Array) -> bool:
        """Have the tokenizer look at what is new; whether it says something else."""
        count = int(tally[LEARNED])
        if not count:
            return False
        spelled = self._spelled[: int(tally[SPELLED])].tobytes().decode()
        (encoded,) = self._model.encode_batch_fast([spelled], add_special_tokens=False)
        learnt = self._learnt[: int(tally[LEARNT])]
        if np.array_equal(np.array(encoded.ids, np.uint32), learnt):
            if self._checked:
                self._checked.add(self._digests[:count])
            return False
        before = 0
        for word, (_, _, slot, end) in zip(spelled.split(" "), self._news[:count].tolist(), strict=False):
            ids: list[int] = [token.id for token in self._model.model.tokenize(word)]
            if ids != learnt[before:end].tolist():
                self._correct(slot, ids)
            before = end
        return True

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

    @staticmethod
    def _composed(texts: Texts) -> Texts:
        """In NFC."""
        changed: dict[int, bytes] = {}
        data, offsets = texts.data, texts.offsets.tolist()
        if not len(texts) or data[offsets[0] : offsets[-1]].max(initial=0) < 0x80:
            return texts
        for i, (a, b) in enumerate(itertools.pairwise(offsets)):
            text = data[a:b].tobytes()
            if not text.isascii() and not unicodedata.is_normalized("NFC", whole := text.decode()):
                changed[i] = unicodedata.normalize("NFC", whole).encode()
        if not changed:
            return texts
        rows = [changed.get(i, data[a:b].tobytes()) for i, (a, b) in enumerate(itertools.pairwise(offsets))]
        return Texts(np.frombuffer(b"".join(rows), np.uint8), np.cumsum([0, *map(len, rows)], dtype=np.int64))
