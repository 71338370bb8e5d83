"""Words and shingles: what near-duplicate detection compares, over Arrow's offsets and bytes without Python strings.

A word, in terms of characters:
  - ASCII letters (compared without case), digits and `_`, and every other character from U+00C0 on, stand in words;
  - other ASCII, U+0080-U+00BF and U+2000-U+2FFF (spaces, quotes, dashes, symbols) separate words;
  - a character of U+3000-U+DFFF or U+F000-U+FFFF (kana, Han, Hangul) begins a new word.
A shingle is `n` words in a row; a text of 1 to `n` words has one shingle, all its words. The Jaccard similarity of two
texts is that of their sets of shingles. A shingle is known by 64 bits: two different ones among a million are equal
with probability 3e-8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]
U64 = np.uint64

WORD = re.compile(
    "[\u3000-\ud7ff\uf000-\uffff][0-9A-Za-z_\u00c0-\u1fff\ue000-\uefff\U00010000-\U0010ffff]*"
    "|[0-9A-Za-z_\u00c0-\u1fff\ue000-\uefff\U00010000-\U0010ffff]+"
)


def words(text: str) -> list[str]:
    """The words of a text: the definition in plain Python, which the kernels are tested against."""
    return [word.encode().lower().decode() for word in WORD.findall(text)]


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The set of shingles of a text; empty for a text without words."""
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, min(len(found), 1)))}


def jaccard(a: str, b: str, n: int) -> float:
    """|A and B| / |A or B| of the two texts' shingles; 0 if neither has any."""
    one, two = shingles(a, n), shingles(b, n)
    return len(one & two) / max(len(one | two), 1)


@dataclass(frozen=True)
class Texts:
    """A column of texts as Arrow holds it: text i is `data[offsets[i]:offsets[i + 1]]`."""

    data: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1


def texts_of(column: pa.Array | pa.ChunkedArray) -> Texts:
    """View a string column without a copy (chunks are joined; null is the empty text)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if column.null_count:
        column = column.fill_null("")
    large = pa.types.is_large_string(column.type)
    _, offsets, data = column.buffers()
    if not len(column):
        return Texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    at = np.frombuffer(offsets, np.int64 if large else np.int32)[column.offset : column.offset + len(column) + 1]
    bytes_ = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return Texts(bytes_, at.astype(np.int64, copy=False))


def _classes() -> Array:
    """Byte -> its value in a word (letters in lower case), 0 for what separates."""
    table = np.zeros(256, np.uint8)
    for byte in (*range(0x30, 0x3A), *range(0x41, 0x5B), 0x5F, *range(0x61, 0x7B), *range(0x80, 0x100)):
        table[byte] = byte + 32 if 0x41 <= byte < 0x5B else byte
    table[[0xC2, 0xE2]] = 0
    return table


CLASSES = _classes()
MULTIPLIER = U64(0x9E3779B97F4A7C15)  # odd; 2**64 / golden ratio
MIX_1, MIX_2 = U64(0xFF51AFD7ED558CCD), U64(0xC4CEB9FE1A85EC53)  # MurmurHash3's 64-bit finaliser
STRETCH = 256  # bytes that are looked at for non-ASCII at a time
COMBINE = U64(0xD6E8FEB86659FD93)


@numba.njit(cache=True, nogil=True, inline="always")
def mix(x: Any) -> Any:
    """MurmurHash3's finaliser, a bijection of 64 bits in which every bit depends on every other."""
    x ^= x >> U64(33)
    x *= MIX_1
    x ^= x >> U64(33)
    x *= MIX_2
    return x ^ (x >> U64(33))


@numba.njit(cache=True, nogil=True)
def hash_words(data: Any, start: int, end: int, classes: Any, out: Any) -> int:
    """Write a 64-bit hash of each word to `out`, which needs `end - start + 1` places; return how many.

    A polynomial in the word's bytes, without a branch on what they are: words are short, so a mispredicted branch a
    word would cost more than the arithmetic. Stretches of ASCII need less of it.
    """
    n, h, inside = 0, U64(0), 0
    i = start
    while i < end:
        stop = min(i + STRETCH, end)
        high = np.uint8(0)
        for j in range(max(i - 2, start), stop):
            high = np.uint8(high | data[j])
        if high < 0x80:
            n, h, inside = _ascii_stretch(data, i, stop, classes, out, n, h, inside)
        else:
            n, h, inside = _any_stretch(data, start, i, stop, classes, out, n, h, inside)
        i = stop
    out[n] = h
    return n + inside


@numba.njit(cache=True, nogil=True)
def _ascii_stretch(data: Any, i: int, stop: int, classes: Any, out: Any, n: int, h: Any, inside: int) -> Any:
    for j in range(i, stop):
        c = classes[data[j]]
        out[n] = h
        word = int(c != 0)
        n += inside & (1 - word)
        h = h * MULTIPLIER + U64(c) if c != 0 else U64(0)
        inside = word
    return n, h, inside


@numba.njit(cache=True, nogil=True)
def _any_stretch(data: Any, start: int, i: int, stop: int, classes: Any, out: Any, n: int, h: Any, inside: int) -> Any:
    before = data[i - 1] if i > start else np.uint8(0)
    before2 = data[i - 2] if i > start + 1 else np.uint8(0)
    for j in range(i, stop):
        byte = data[j]
        c = classes[byte]
        c = np.uint8(0) if (before == 0xC2) | (before == 0xE2) | (before2 == 0xE2) else c
        leads = (byte >= 0xE3) & (byte <= 0xEF) & (byte != 0xEE)
        out[n] = h
        n += inside & int((c == 0) | leads)
        h = U64(0) if (c == 0) | leads else h
        h = h * MULTIPLIER + U64(c)
        inside = int(c != 0)
        before2 = before
        before = byte
    return n, h, inside


@numba.njit(cache=True, nogil=True)
def hash_shingles(words_: Any, count: int, n: int, out: Any) -> int:
    """Write a 64-bit hash of each shingle of `count` words to `out`, in order; return how many. Changes `words_`."""
    if count == 0:
        return 0
    for i in range(count):
        words_[i] = mix(words_[i])
    width = min(n, count)
    total = count - width + 1
    for i in range(total):
        out[i] = words_[i]
    for j in range(1, width):
        for i in range(total):
            out[i] = out[i] * COMBINE + words_[i + j]
    for i in range(total):
        out[i] = mix(out[i] + U64(width))
    return total


@numba.njit(cache=True, nogil=True)
def shingle_sets(data: Any, offsets: Any, chosen: Any, n: int, classes: Any, out: Any, ends: Any) -> None:
    """Write the shingles of the chosen texts one after the other to `out`; `ends[i]` is where those of the i-th end.

    Args:
        out: uint64; the number of bytes of the chosen texts is always room enough.
    """
    longest = 0
    for t in chosen:
        longest = max(longest, offsets[t + 1] - offsets[t])
    buffer = np.empty(longest + 1, np.uint64)
    at = 0
    for i in range(len(chosen)):
        t = chosen[i]
        count = hash_words(data, offsets[t], offsets[t + 1], classes, buffer)
        at += hash_shingles(buffer, count, n, out[at:])
        ends[i] = at


@numba.njit(cache=True, nogil=True)
def overlap(a: Any, b: Any) -> int:
    """How many values two sorted arrays without repeats have in common."""
    i = j = common = 0
    while i < len(a) and j < len(b):
        x, y = a[i], b[j]
        common += int(x == y)
        i += int(x <= y)
        j += int(y <= x)
    return common


@numba.njit(cache=True, nogil=True)
def compact(values: Any, ends: Any) -> int:
    """Drop repeats from sorted stretches of `values` in place, moving them together; returns the new length."""
    start = at = 0
    for i in range(len(ends)):
        first = at
        for j in range(start, ends[i]):
            if at == first or values[j] != values[at - 1]:
                values[at] = values[j]
                at += 1
        start = ends[i]
        ends[i] = at
    return at


def sorted_sets(texts: Texts, chosen: Array, n: int) -> tuple[Array, Array]:
    """The sets of shingles of the chosen texts, each sorted: all values (uint64), and where each set ends."""
    room = int((texts.offsets[chosen + 1] - texts.offsets[chosen]).sum()) + 1
    values = np.empty(room, np.uint64)
    ends = np.zeros(len(chosen), np.int64)
    shingle_sets(texts.data, texts.offsets, chosen, n, CLASSES, values, ends)
    start = 0
    for end in ends.tolist():
        values[start:end].sort()  # NumPy's vectorised sort, many times faster than one compiled here
        start = end
    return values[: compact(values, ends)], ends
