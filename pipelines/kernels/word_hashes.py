"""Words and shingles of the word forms of texts (see `pipelines.texts.forms`), over Arrow's bytes and offsets.

In a word form, ASCII letters, digits and `_` stand in words, and so does every byte beyond ASCII.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.bytemasks import BLOCK, copy_lower, equals, ones, within, word_at, write_bits

U64 = np.uint64
MULTIPLIER = U64(0x9E3779B97F4A7C15)  # odd; 2**64 / golden ratio
MIX_1, MIX_2 = U64(0xFF51AFD7ED558CCD), U64(0xC4CEB9FE1A85EC53)  # MurmurHash3's 64-bit finaliser
COMBINE = U64(0xD6E8FEB86659FD93)
# The first and the second eight bytes of a word of so many bytes.
LOW = np.array([(1 << 8 * min(size, 8)) - 1 for size in range(17)], np.uint64)
HIGH = np.array([(1 << 8 * max(size - 8, 0)) - 1 for size in range(17)], np.uint64)
RUN = 64


@numba.njit(cache=True, nogil=True, inline="always")
def mix(x: Any) -> Any:
    """MurmurHash3's finaliser, a bijection of 64 bits in which every bit depends on every other."""
    x ^= x >> U64(33)
    x *= MIX_1
    x ^= x >> U64(33)
    x *= MIX_2
    return x ^ (x >> U64(33))


@numba.njit(cache=True, nogil=True, inline="always")
def _in_words(data: Any, at: int) -> Any:
    """Which of 64 bytes stand in words."""
    word = within(data, at, 0x61, 0x7A) | within(data, at, 0x41, 0x5A) | within(data, at, 0x30, 0x39)
    return word | equals(data, at, 0x5F) | within(data, at, 0x80, 0xFF)


@numba.njit(cache=True, nogil=True)
def find_words(data: Any, start: int, end: int, lower: Any, starts: Any, ends: Any) -> int:
    """Write where each word begins and ends, from `start` on; return how many there are.

    Args:
        lower: out: the text in lower case, and at least 64 bytes after it; `end - start + 128` places.
        starts, ends: out, int32; `end - start + 1` places.
    """
    begun = ended = 0
    inside = U64(0)
    size = end - start
    for at in range(0, size + 1, BLOCK):
        if at + BLOCK <= size:
            copy_lower(data, start + at, lower, at)
            word = _in_words(data, start + at)
        else:  # the rest, followed by zeros
            for i in range(BLOCK):
                lower[at + i] = data[start + at + i] if at + i < size else 0
            word = _in_words(lower, at)
            copy_lower(lower, at, lower, at)
        before = word << U64(1) | inside
        inside = word >> U64(63)
        begun = write_bits(word & ~before, at, starts, begun)
        ended = write_bits(before & ~word, at, ends, ended)
    return begun


@numba.njit(cache=True, nogil=True)
def count_words(data: Any, offsets: Any, rest: Any, out: Any) -> None:
    """Write how many words each text has to `out`; `rest` is room for 64 bytes."""
    for t in range(len(out)):
        count, inside = 0, U64(0)
        for at in range(offsets[t], offsets[t + 1], BLOCK):
            if at + BLOCK <= offsets[t + 1]:
                word = _in_words(data, at)
            else:
                for i in range(BLOCK):
                    rest[i] = data[at + i] if at + i < offsets[t + 1] else 0
                word = _in_words(rest, 0)
            count += ones(word & ~(word << U64(1) | inside))
            inside = word >> U64(63)
        out[t] = count


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
def shingle_sets(
    data: Any, offsets: Any, chosen: Any, n: int,
    lower: Any, starts: Any, stops: Any, words: Any,
    out: Any, ends: Any,
) -> None:  # fmt: skip
    """Write the shingles of the chosen texts one after the other to `out`; `ends[i]` is where those of the i-th end.

    Args:
        lower, starts, stops, words: room for the longest text, as `hash_words` and `make_room` have it.
        out: uint64; the number of bytes of the chosen texts is always room enough.
    """
    at = 0
    for i in range(len(chosen)):
        t = chosen[i]
        count = hash_words(data, offsets[t], offsets[t + 1], (lower, starts, stops), words)
        at += hash_shingles(words, count, n, out[at:])
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


@numba.njit(cache=True, nogil=True)
def _holds(values: Any, begin: int, end: int, value: Any) -> bool:
    """Whether a value is in a sorted stretch of `values`."""
    while begin < end:
        middle = (begin + end) // 2
        if values[middle] < value:
            begin = middle + 1
        elif values[middle] > value:
            end = middle
        else:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def shared_runs(
    data: Any, offsets: Any, chosen: Any, values: Any, begins: Any, ends: Any, n: int,
    lower: Any, starts: Any, stops: Any, words: Any, hashes: Any,
    found: Any,
) -> None:  # fmt: skip
    """Where the first run of shingles of each chosen text that stand in another set begins and ends, in bytes.

    Args:
        values, begins, ends: the sorted set for the i-th chosen text is `values[begins[i]:ends[i]]`.
        lower, starts, stops, words, hashes: room for the longest text.
        found: (chosen, 2) int64, out; the two are equal if there is none. Looks on for at most `RUN` shingles.
    """
    for i in range(len(chosen)):
        start = offsets[chosen[i]]
        found[i, 0] = found[i, 1] = start
        count = hash_words(data, start, offsets[chosen[i] + 1], (lower, starts, stops), words)
        total = hash_shingles(words, count, n, hashes)
        run = 0
        for k in range(total):
            if _holds(values, begins[i], ends[i], hashes[k]):
                if run == 0:
                    found[i, 0] = start + starts[k]
                run += 1
                found[i, 1] = start + stops[k + min(n, count) - 1]
                if run == RUN:
                    break
            elif run:
                break
