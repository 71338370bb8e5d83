"""Passages of words by a rolling hash, and a table to look them up in (see `pipelines.decontaminate.overlap`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.word_hashes import MULTIPLIER, U64, hash_words, mix


@numba.njit(cache=True, nogil=True)
def _prefixes(data: Any, start: int, end: int, room: Any, words: Any, prefix: Any) -> int:
    """Write the hash of the first i words to `prefix[i]`, for every i; return how many words there are."""
    count = hash_words(data, start, end, room, words)
    prefix[0] = U64(0)
    for i in range(count):
        prefix[i + 1] = prefix[i] * MULTIPLIER + mix(words[i])
    return count


@numba.njit(cache=True, nogil=True)
def _power(width: int) -> Any:
    power = U64(1)
    for _ in range(width):
        power *= MULTIPLIER
    return power


@numba.njit(cache=True, nogil=True)
def passages(
    data: Any, offsets: Any, widths: Any,
    lower: Any, starts: Any, stops: Any, words: Any, prefix: Any,
    hashes: Any, owner: Any, place: Any,
) -> int:  # fmt: skip
    """Every passage of `widths[t]` words of each text t: its hash, its text, its first word. Returns how many.

    Args:
        lower, starts, stops, words, prefix: room for the longest text; `prefix` has one place more than it has bytes.
    """
    at = 0
    for t in range(len(offsets) - 1):
        count = _prefixes(data, offsets[t], offsets[t + 1], (lower, starts, stops), words, prefix)
        power = _power(widths[t])
        for i in range(count - widths[t] + 1):
            hashes[at] = mix(prefix[i + widths[t]] - prefix[i] * power + U64(widths[t]))
            owner[at], place[at] = t, i
            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def fill(known: Any, keys: Any, entries: Any, bits: Any) -> None:
    """Enter hashes into the table and the bitmap before it; the number of each is its entry."""
    mask, bit_mask = U64(len(keys) - 1), U64(8 * len(bits) - 1)
    for e in range(len(known)):
        h = known[e]
        slot = np.int64(h & mask)
        while entries[slot] >= 0:
            slot = (slot + 1) & np.int64(mask)
        keys[slot], entries[slot] = h, e
        bit = np.int64((h >> U64(20)) & bit_mask)
        bits[bit >> 3] |= np.uint8(1 << (bit & 7))


@numba.njit(cache=True, nogil=True)
def look_up(
    data: Any, offsets: Any, widths: Any, keys: Any, entries: Any, bits: Any,
    lower: Any, starts: Any, stops: Any, words: Any, prefix: Any,
    out: Any,
) -> int:  # fmt: skip
    """Write (text, first word, width, entry) of each match as far as there is room; return how many matches there are.

    Args:
        widths, keys, entries, bits: the index (see `pipelines.decontaminate.overlap`).
        lower, starts, stops, words, prefix: as in `passages`.
    """
    mask, bit_mask = U64(len(keys) - 1), U64(8 * len(bits) - 1)
    found = 0
    for t in range(len(offsets) - 1):
        count = _prefixes(data, offsets[t], offsets[t + 1], (lower, starts, stops), words, prefix)
        for w in range(len(widths) - 1, -1, -1):
            width = widths[w]
            power = _power(width)
            for i in range(count - width + 1):
                h = mix(prefix[i + width] - prefix[i] * power + U64(width))
                bit = np.int64((h >> U64(20)) & bit_mask)
                if bits[bit >> 3] >> np.uint8(bit & 7) & 1 == 0:
                    continue
                slot = np.int64(h & mask)
                while entries[slot] >= 0 and keys[slot] != h:
                    slot = (slot + 1) & np.int64(mask)
                if entries[slot] >= 0:
                    if found < len(out):
                        out[found, 0], out[found, 1], out[found, 2], out[found, 3] = t, i, width, entries[slot]
                    found += 1
    return found
