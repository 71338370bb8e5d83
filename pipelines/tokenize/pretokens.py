"""Encoding by a cache over pretokens: the ids of a Hugging Face byte-level BPE, many times faster.

A byte-level BPE cuts a text into pretokens (GPT-2's regular expression) and encodes each by itself, so the ids of a
pretoken never depend on its neighbours; and text repeats its pretokens. Here a kernel cuts Arrow's bytes into pretokens
and looks up each in a table; what is not there is encoded by the tokenizer itself, once.

A pretoken is known by 64 bits: among a million of them, two are taken for one with probability 3e-8. A text with a
character that this Python's Unicode tables do not know goes to the tokenizer whole.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from pipelines.kernels.shingles import U64, mix
from pipelines.texts.shingles import Array, Texts

LETTER, NUMBER, SPACE, OTHER, UNKNOWN = 1, 2, 3, 4, 5
WHITE_SPACE = (
    *range(0x09, 0x0E),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)
HASH = U64(0x9E3779B97F4A7C15)
CONTRACTION = U64(1 << 40)  # beyond what the hash of one character can be
MOST = 4_000_000  # pretokens that are remembered; then the table starts anew


@cache
def classes() -> Array:
    r"""Code point -> \p{L}, \p{N}, \s, any other, or one that this Python does not know."""
    table = np.full(0x110000, OTHER, np.uint8)
    for point in range(0x110000):
        category = unicodedata.category(chr(point))
        if category[0] == "L":
            table[point] = LETTER
        elif category[0] == "N":
            table[point] = NUMBER
        elif category == "Cn":
            table[point] = UNKNOWN
    table[list(WHITE_SPACE)] = SPACE
    return table


@numba.njit(cache=True, nogil=True)
def _decode(data: Any, i: int) -> Any:
    """(code point, bytes) at a byte."""
    byte = np.int64(data[i])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        return (byte & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F), 2
    if byte < 0xF0:
        return (byte & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F), 3
    high = (byte & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
    return high | (np.int64(data[i + 2]) & 0x3F) << 6 | (np.int64(data[i + 3]) & 0x3F), 4


@numba.njit(cache=True, nogil=True)
def next_pretoken(data: Any, i: int, end: int, table: Any) -> Any:
    r"""(end, hash) of the pretoken that begins at `i`; the end is -1 if a character is unknown.

    GPT-2's `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, tried in this order.
    """
    h = U64(0)
    byte = data[i]
    if byte == 0x27 and i + 1 < end:
        a = data[i + 1]
        if a == 0x73 or a == 0x74 or a == 0x6D or a == 0x64:
            return i + 2, mix(U64(a) + CONTRACTION)
        if i + 2 < end:
            b = data[i + 2]
            if ((a == 0x72 or a == 0x76) and b == 0x65) or (a == 0x6C and b == 0x6C):
                return i + 3, mix(U64(a) + CONTRACTION * U64(2))
    at = i
    point, size = _decode(data, at)
    kind = table[point]
    if kind == SPACE:
        if byte == 0x20 and at + 1 < end:
            ahead, _ = _decode(data, at + 1)
            if table[ahead] != SPACE:
                h = U64(0x20)
                at += 1
                point, size = _decode(data, at)
                kind = table[point]
        if kind == SPACE:
            last = at
            while at < end:
                point, size = _decode(data, at)
                if table[point] != SPACE:
                    if table[point] == UNKNOWN:
                        return -1, h
                    break
                last = at
                at += size
            if at < end and last > i:  # all but the last, which may belong to what follows
                at = last
            for k in range(i, at):
                h = h * HASH + U64(data[k])
            return at, mix(h)
    while True:
        if table[point] == UNKNOWN:
            return -1, h
        h = h * HASH + U64(point)
        at += size
        if at >= end:
            break
        point, size = _decode(data, at)
        if table[point] != kind:
            if table[point] == UNKNOWN:
                return -1, h
            break
    return at, mix(h)


@numba.njit(cache=True, nogil=True)
def _scan(
    data: Any, offsets: Any, first: int, table: Any, keys: Any, slots: Any, known: int, most: int, found: Any, ends: Any,
    starts: Any, stops: Any,
) -> Any:  # fmt: skip
    """Cut texts from `first` on into pretokens, and name each by its number in the table, adding those it lacks.

    Args:
        keys, slots: the table, open-addressed: hash and number of a pretoken; -1 where free.
        known, most: pretokens in the table; stop before a text once there are more than `most`.
        found: numbers of the pretokens, out. ends: where those of each text end, out; -1 less that for an unknown text.
        starts, stops: bytes of the pretokens that were added, out.

    Returns:
        (the text to go on with, pretokens found, pretokens in the table, how many of them are new).
    """
    mask = len(slots) - 1
    count = new = 0
    t = first
    while t < len(offsets) - 1:
        if known > most:
            break
        i, end = offsets[t], offsets[t + 1]
        begin = count
        whole = True
        while i < end:
            stop, key = next_pretoken(data, i, end, table)
            if stop < 0:
                whole = False
                break
            slot = np.int64(key & U64(mask))
            while slots[slot] >= 0 and keys[slot] != key:
                slot = (slot + 1) & mask
            if slots[slot] < 0:
                if new == len(starts) or 4 * known >= 3 * len(slots):
                    break
                keys[slot], slots[slot] = key, known
                starts[new], stops[new] = i, stop
                known += 1
                new += 1
            found[count] = slots[slot]
            count += 1
            i = stop
        if whole and i < end:  # no room: this text again, with a larger table
            count = begin
            break
        if not whole:
            count = begin
        ends[t - first] = count if whole else -1 - count
        t += 1
    return t, count, known, new


@numba.njit(cache=True, nogil=True)
def _rehash(keys: Any, slots: Any, new_keys: Any, new_slots: Any) -> None:
    mask = len(new_slots) - 1
    for i in range(len(slots)):
        if slots[i] >= 0:
            slot = np.int64(keys[i] & U64(mask))
            while new_slots[slot] >= 0:
                slot = (slot + 1) & mask
            new_keys[slot], new_slots[slot] = keys[i], slots[i]


@numba.njit(cache=True, nogil=True)
def _expand(found: Any, count: int, bounds: Any, ids: Any, out: Any, marks: Any) -> int:
    """The ids of pretokens one after the other; `marks[i]` is where those of the i-th end."""
    at = 0
    for i in range(count):
        for k in range(bounds[found[i]], bounds[found[i] + 1]):
            out[at] = ids[k]
            at += 1
        marks[i] = at
    return at


class PretokenCache:
    """Encodes columns of texts.

    Args:
        encode: texts -> lists of ids, the tokenizer itself.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._clear()

    def _clear(self) -> None:
        self._keys = np.zeros(1 << 16, np.uint64)
        self._slots = np.full(1 << 16, -1, np.int32)
        self._known = 0
        self._ids = np.zeros(1 << 16, np.uint32)  # of all pretokens, one after the other
        self._bounds = np.zeros(1 << 16, np.int64)  # where those of each begin; one more than pretokens

    def encode(self, texts: Texts) -> list[Array]:
        """The ids of each text, uint32."""
        made: list[Array] = []
        largest = int(np.diff(texts.offsets).max(initial=0))
        while len(made) < len(texts):
            first = len(made)
            # as many texts as make a few megabytes, so that the buffers stay in the cache
            budget = texts.offsets[first] + max(largest, 4 << 20)
            last = int(np.searchsorted(texts.offsets, budget, side="right")) - 1
            made += self._some(Texts(texts.data, texts.offsets[first : max(last, first + 1) + 1]))
        return made

    def _some(self, texts: Texts) -> list[Array]:
        made: list[Array] = []
        size = int(texts.offsets[-1] - texts.offsets[0])
        found, ends = np.empty(size + 1, np.int32), np.empty(len(texts), np.int64)
        starts, stops = np.empty(size + 1, np.int64), np.empty(size + 1, np.int64)
        marks = np.empty(size + 1, np.int64)
        while len(made) < len(texts):
            first = len(made)
            after, count, known, new = _scan(
                texts.data, texts.offsets, first, classes(), self._keys, self._slots, self._known, MOST, found, ends,
                starts, stops,
            )  # fmt: skip
            self._learn(texts.data, starts[:new], stops[:new])
            assert self._known == known
            lengths = self._bounds[1 : known + 1] - self._bounds[:known]
            out = np.empty(int(lengths[found[:count]].sum()), np.uint32)
            _expand(found, count, self._bounds, self._ids, out, marks)
            begin = 0
            for index in range(first, after):
                end = int(ends[index - first])
                if end < 0:
                    text = texts.data[texts.offsets[index] : texts.offsets[index + 1]].tobytes().decode()
                    made.append(np.array(self._encode([text])[0], np.uint32))
                    continue
                made.append(out[marks[begin - 1] if begin else 0 : marks[end - 1] if end else 0])
                begin = end
            if after < len(texts):
                if known > MOST:
                    self._clear()
                else:
                    self._grow()
        return made

    def _learn(self, data: Array, starts: Array, stops: Array) -> None:
        if not len(starts):
            return
        pretokens = [data[a:b].tobytes().decode() for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        encoded = self._encode(pretokens)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        begin, count = int(self._bounds[self._known]), self._known
        self._known += len(encoded)
        while len(self._bounds) < self._known + 1:
            self._bounds = np.concatenate([self._bounds, np.zeros_like(self._bounds)])
        self._bounds[count + 1 : self._known + 1] = begin + np.cumsum(lengths)
        while len(self._ids) < self._bounds[self._known]:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[begin : self._bounds[self._known]] = [i for ids in encoded for i in ids]

    def _grow(self) -> None:
        keys, slots = np.zeros(2 * len(self._keys), np.uint64), np.full(2 * len(self._slots), -1, np.int32)
        _rehash(self._keys, self._slots, keys, slots)
        self._keys, self._slots = keys, slots


def fits(tokenizer_json: str) -> bool:
    """Whether a tokenizer (as tokenizer.json) is a BPE over GPT-2's pretokens and nothing else that looks at text."""
    parts: dict[str, Any] = json.loads(tokenizer_json)
    pre = parts.get("pre_tokenizer") or {}
    model = parts.get("model") or {}
    return (
        parts.get("normalizer") is None
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space")
        and pre.get("use_regex", True)
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and all(token["special"] for token in parts.get("added_tokens") or [])
    )
