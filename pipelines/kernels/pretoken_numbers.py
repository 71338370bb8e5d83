"""Bytes cut into GPT-2's pretokens, each named by its number in a table (see `pipelines.tokenize.pretokens`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.characters import UNKNOWN, WHITE
from pipelines.kernels.word_hashes import MULTIPLIER, U64, mix

CONTRACTION = U64(1 << 40)  # beyond what the hash of one character can be


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
    if kind == WHITE:
        if byte == 0x20 and at + 1 < end:
            ahead, _ = _decode(data, at + 1)
            if table[ahead] != WHITE:
                h = U64(0x20)
                at += 1
                point, size = _decode(data, at)
                kind = table[point]
        if kind == WHITE:
            last = at
            while at < end:
                point, size = _decode(data, at)
                if table[point] != WHITE:
                    if table[point] == UNKNOWN:
                        return -1, h
                    break
                last = at
                at += size
            if at < end and last > i:  # all but the last, which may belong to what follows
                at = last
            for k in range(i, at):
                h = h * MULTIPLIER + U64(data[k])
            return at, mix(h)
    while True:
        if table[point] == UNKNOWN:
            return -1, h
        h = h * MULTIPLIER + U64(point)
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
def number_pretokens(
    data: Any, offsets: Any, first: int, table: Any, keys: Any, slots: Any, known: int, most: int, found: Any, ends: Any,
    starts: Any, stops: Any, tally: Any,
) -> int:  # fmt: skip
    """Cut texts from `first` on into pretokens, and name each by its number in the table, adding those it lacks.

    Args:
        keys, slots: the table, open-addressed: hash and number of a pretoken; -1 where free.
        known, most: pretokens in the table; stop before a text once there are more than `most`.
        found: numbers of the pretokens, out. ends: where those of each text end, out; -1 less that for an unknown text.
        starts, stops: bytes of the pretokens that were added, out.
        tally: (3,) int64, out: pretokens found, pretokens in the table, how many of them are new.

    Returns:
        the text to go on with.
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
    tally[0], tally[1], tally[2] = count, known, new
    return t


@numba.njit(cache=True, nogil=True)
def rehash(keys: Any, slots: Any, new_keys: Any, new_slots: Any) -> None:
    """Enter all pretokens of a table into a larger, empty one."""
    mask = len(new_slots) - 1
    for i in range(len(slots)):
        if slots[i] >= 0:
            slot = np.int64(keys[i] & U64(mask))
            while new_slots[slot] >= 0:
                slot = (slot + 1) & mask
            new_keys[slot], new_slots[slot] = keys[i], slots[i]


@numba.njit(cache=True, nogil=True)
def expand(found: Any, count: int, bounds: Any, ids: Any, out: Any, marks: Any) -> int:
    """The ids of pretokens one after the other; `marks[i]` is where those of the i-th end."""
    at = 0
    for i in range(count):
        for k in range(bounds[found[i]], bounds[found[i] + 1]):
            out[at] = ids[k]
            at += 1
        marks[i] = at
    return at
