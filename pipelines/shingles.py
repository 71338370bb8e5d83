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

from pipelines.bytemasks import BLOCK, copy_lower, equals, within, word_at, write_bits

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


MULTIPLIER = U64(0x9E3779B97F4A7C15)  # odd; 2**64 / golden ratio
MIX_1, MIX_2 = U64(0xFF51AFD7ED558CCD), U64(0xC4CEB9FE1A85EC53)  # MurmurHash3's 64-bit finaliser
COMBINE = U64(0xD6E8FEB86659FD93)
# The first and the second eight bytes of a word of so many bytes.
LOW = np.array([(1 << 8 * min(size, 8)) - 1 for size in range(17)], np.uint64)
HIGH = np.array([(1 << 8 * max(size - 8, 0)) - 1 for size in range(17)], np.uint64)


@numba.njit(cache=True, nogil=True, inline="always")
def mix(x: Any) -> Any:
    """MurmurHash3's finaliser, a bijection of 64 bits in which every bit depends on every other."""
    x ^= x >> U64(33)
    x *= MIX_1
    x ^= x >> U64(33)
    x *= MIX_2
    return x ^ (x >> U64(33))


@numba.njit(cache=True, nogil=True, inline="always")
def _word_masks(data: Any, at: int, c2_before: Any, e2_before: Any) -> Any:
    """(bytes that stand in words, bytes that begin one, the first bytes C2, E2) of 64 bytes.

    `c2_before` and `e2_before` are the last two of the 64 bytes before, shifted to the front of these.
    """
    word = within(data, at, 0x61, 0x7A) | within(data, at, 0x41, 0x5A) | within(data, at, 0x30, 0x39)
    word |= equals(data, at, 0x5F)
    high = within(data, at, 0x80, 0xFF)
    if high | c2_before | e2_before == 0:
        return word, U64(0), U64(0), U64(0)
    c2, e2 = equals(data, at, 0xC2), equals(data, at, 0xE2)
    separates = c2 | c2 << U64(1) | c2_before | e2 | e2 << U64(1) | e2 << U64(2) | e2_before
    leads = within(data, at, 0xE3, 0xEF) & ~equals(data, at, 0xEE)
    return (word | high) & ~separates, leads, c2, e2


@numba.njit(cache=True, nogil=True)
def find_words(data: Any, start: int, end: int, lower: Any, starts: Any, ends: Any) -> int:
    """Write where each word begins and ends, from `start` on; return how many there are.

    Args:
        lower: out: the text in lower case, and at least 64 bytes after it; `end - start + 128` places.
        starts, ends: out, int32; `end - start + 1` places.
    """
    begun = ended = 0
    tail = np.zeros(BLOCK, np.uint8)
    inside = c2_before = e2_before = U64(0)
    size = end - start
    for at in range(0, size + 1, BLOCK):
        if at + BLOCK <= size:
            copy_lower(data, start + at, lower, at)
            word, leads, c2, e2 = _word_masks(data, start + at, c2_before, e2_before)
        else:  # the rest, followed by zeros
            for i in range(size - at):
                tail[i] = data[start + at + i]
            copy_lower(tail, 0, lower, at)
            word, leads, c2, e2 = _word_masks(tail, 0, c2_before, e2_before)
        c2_before, e2_before = c2 >> U64(63), e2 >> U64(62) | e2 >> U64(63)
        before = word << U64(1) | inside
        inside = word >> U64(63)
        begun = write_bits(word & (~before | leads), at, starts, begun)
        ended = write_bits(before & (~word | leads), at, ends, ended)
    return begun


@numba.njit(cache=True, nogil=True)
def hash_words(data: Any, start: int, end: int, room: Any, out: Any) -> int:
    """Write a 64-bit hash of each word to `out`, which needs `end - start + 1` places; return how many.

    Words of up to eight bytes are their own hash; the words' places are left in `room`.
    """
    lower, starts, ends = room
    count = find_words(data, start, end, lower, starts, ends)
    for i in range(count):
        at, size = np.intp(starts[i]), ends[i] - starts[i]
        short = min(size, 16)
        h = word_at(lower, at) & LOW[short]
        h += (word_at(lower, at + 8) & HIGH[short]) * MULTIPLIER
        if size > 16:
            for next_ in range(16, size, 8):
                h = mix(h) + (word_at(lower, at + next_) & LOW[min(size - next_, 8)])
            h = mix(h + U64(size))
        out[i] = h
    return count


@numba.njit(cache=True, nogil=True)
def make_room(longest: int) -> Any:
    """What `hash_words` needs for texts of up to so many bytes: the text in lower case, where words begin and end."""
    return (
        np.empty(longest + 2 * BLOCK, np.uint8),
        np.empty(longest + 1, np.int32),
        np.empty(longest + 1, np.int32),
    )


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
def shingle_sets(data: Any, offsets: Any, chosen: Any, n: int, out: Any, ends: Any) -> None:
    """Write the shingles of the chosen texts one after the other to `out`; `ends[i]` is where those of the i-th end.

    Args:
        out: uint64; the number of bytes of the chosen texts is always room enough.
    """
    longest = 0
    for t in chosen:
        longest = max(longest, offsets[t + 1] - offsets[t])
    buffer, room = np.empty(longest + 1, np.uint64), make_room(longest)
    at = 0
    for i in range(len(chosen)):
        t = chosen[i]
        count = hash_words(data, offsets[t], offsets[t + 1], room, buffer)
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
    shingle_sets(texts.data, texts.offsets, chosen, n, values, ends)
    start = 0
    for end in ends.tolist():
        values[start:end].sort()  # NumPy's vectorised sort, many times faster than one compiled here
        start = end
    return values[: compact(values, ends)], ends


def shared_run(texts: Texts, index: int, other: Array, n: int) -> tuple[int, int]:
    """Where the first run of shingles of a text that are in `other` (a sorted set) begins and ends, in bytes.

    Looks on for at most `RUN` shingles; the two are equal if there is none.
    """
    start, end = int(texts.offsets[index]), int(texts.offsets[index + 1])
    found = np.zeros(2, np.int64)
    _shared_run(texts.data, start, end, other, n, found)
    return start + int(found[0]), start + int(found[1])


RUN = 64


@numba.njit(cache=True, nogil=True)
def _shared_run(data: Any, start: int, end: int, other: Any, n: int, found: Any) -> None:
    room = make_room(end - start)
    words_, hashes = np.empty(end - start + 1, np.uint64), np.empty(end - start + 1, np.uint64)
    count = hash_words(data, start, end, room, words_)
    total = hash_shingles(words_, count, n, hashes)
    run = 0
    for i in range(total):
        at = np.searchsorted(other, hashes[i])
        if at < len(other) and other[at] == hashes[i]:
            if run == 0:
                found[0] = room[1][i]
            run += 1
            found[1] = room[2][i + min(n, count) - 1]
            if run == RUN:
                return
        elif run:
            return
