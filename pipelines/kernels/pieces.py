"""Lines, paragraphs and windows of words of a text by 128 bits each, and which of them stand in one before (see
`pipelines.dedup.repeats`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.word_hashes import COMBINE, MULTIPLIER, U64, hash_words, mix


@numba.njit(cache=True, nogil=True)
def _blank(byte: Any) -> bool:
    return byte == 32 or (9 <= byte <= 13)


@numba.njit(cache=True, nogil=True)
def lines(data: Any, start: int, end: int, paragraphs: bool, keys: Any, spans: Any) -> int:
    """Digests and places of the lines or paragraphs (runs of lines that are not blank) of a text; returns how many.

    Args:
        keys: (n, 2) uint64, out.
        spans: (n, 4) int64, out: first byte, the byte after the last, the first of what follows, words.
    """
    count, at = 0, start
    open_ = False
    x, y, words = U64(0), U64(0), 0
    while at < end:
        stop = at
        while stop < end and data[stop] != 10:
            stop += 1
        after = min(stop + 1, end)
        a, b = at, stop
        while a < b and _blank(data[a]):
            a += 1
        while b > a and _blank(data[b - 1]):
            b -= 1
        if a == b:  # a blank line belongs to what stands before it
            if count:
                spans[count - 1, 2] = after
            open_ = False
            at = after
            continue
        if not (paragraphs and open_):
            x, y, words = U64(0), U64(1), 0
            spans[count, 0] = at
            count += 1
            open_ = True
        else:
            x, y = x * MULTIPLIER + U64(32), y * COMBINE + U64(32)
        space = True
        for i in range(a, b):
            blank = _blank(data[i])
            if blank and space:
                continue
            words += int(space)
            byte = U64(32) if blank else U64(data[i])
            x, y = x * MULTIPLIER + byte, y * COMBINE + byte
            space = blank
        keys[count - 1, 0], keys[count - 1, 1] = mix(x), mix(y)
        spans[count - 1, 1], spans[count - 1, 2], spans[count - 1, 3] = b, after, words
        at = after
    return count


@numba.njit(cache=True, nogil=True)
def windows(data: Any, start: int, end: int, width: int, room: Any, words: Any, keys: Any, spans: Any) -> int:
    """Digests and places of all windows of so many words; as `lines`."""
    count = hash_words(data, start, end, room, words)
    total = max(count - width + 1, 0)
    high_x = high_y = U64(1)
    for _ in range(width):
        high_x *= MULTIPLIER
        high_y *= COMBINE
    x, y = U64(0), U64(0)
    for i in range(count):
        words[i] = mix(words[i])
        x, y = x * MULTIPLIER + words[i], y * COMBINE + words[i]
        if i >= width:
            x -= high_x * words[i - width]
            y -= high_y * words[i - width]
        k = i - width + 1
        if k >= 0:
            keys[k, 0], keys[k, 1] = mix(x), mix(y)
            spans[k, 0], spans[k, 1] = start + room[1][k], start + room[2][i]
            spans[k, 2], spans[k, 3] = spans[k, 1], width
    return total


@numba.njit(cache=True, nogil=True)
def repeats(one: Any, two: Any, document: Any, piece: Any, order: Any, table: Any, out: Any) -> int:
    """Write those that have an equal one before them in `order`, with its document, to `out`; return how many."""
    mask = len(table) - 1
    count = 0
    for i in order:
        slot = np.int64(one[i] & U64(mask))
        while table[slot] >= 0 and (one[table[slot]] != one[i] or two[table[slot]] != two[i]):
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = i
        else:
            out[count, 0], out[count, 1], out[count, 2] = document[i], piece[i], document[table[slot]]
            count += 1
    return count
