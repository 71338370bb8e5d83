"""Lines, paragraphs and windows of words of a text by 128 bits each, and which of them stand in one before (see
`pipelines.dedup.repeats`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.word_hashes import COMBINE, MULTIPLIER, U64, hash_words, mix


@numba.njit(cache=True, nogil=True)
def lines(
    form: Any, begin: int, end: int, origin: Any, data: Any, first: int, last: int, words: Any, keys: Any, spans: Any
) -> int:  # fmt: skip
    """Digests and places of the lines of a form, which are lines or paragraphs of the text; returns how many.

    Args:
        origin: where in `data` the character begins that a byte of `form` stands for; the text is `data[first:last]`.
        words: where in `data` the text's words begin.
        keys: (n, 2) uint64, out.
        spans: (n, 4) int64, out, places in `data`: the beginning of the first line, the byte after the last character, the
            beginning of what follows (a blank line belongs to what stands before it); and the number of words.
    """
    count = met = 0
    at = begin
    while at < end:
        x, y = U64(0), U64(1)
        stop = at
        while stop < end and form[stop] != 10:
            x, y = x * MULTIPLIER + U64(form[stop]), y * COMBINE + U64(form[stop])
            stop += 1
        start, after = origin[at], origin[stop - 1] + 1
        while start > first and data[start - 1] != 10:
            start -= 1
        while after < last and data[after] & 0xC0 == 0x80:
            after += 1
        before = met
        while met < len(words) and words[met] < after:
            met += 1
        keys[count, 0], keys[count, 1] = mix(x), mix(y)
        spans[count, 0], spans[count, 1], spans[count, 2], spans[count, 3] = start, after, last, met - before
        if count:
            spans[count - 1, 2] = start
        count += 1
        at = stop + 1
    return count


@numba.njit(cache=True, nogil=True)
def windows(data: Any, start: int, end: int, width: int, room: Any, words: Any, keys: Any, spans: Any) -> int:
    """Digests and places in `data`, a word form, of all windows of so many words; as `lines`."""
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
