"""Merges of a byte-level BPE, learnt from pretokens and how often each was met (see `pipelines.tokenize.bpe`).

Symbols of all pretokens stand in one array, each linked with the one before and after it. Each pair of neighbours has its count, and a list of
the places where it was made; the most frequent one is on top of a heap, whose counts may be too high and are put right when it is there.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.pretoken_table import ZERO, find
from pipelines.kernels.word_hashes import MULTIPLIER, U64, mix

# What a call tells in `tally`, and goes on from.
STARTED, PAIRS, PLACES, HEAP, TOKENS, MERGES = range(6)
DONE, PAIRS_FULL, PLACES_FULL, HEAP_FULL = range(4)  # what a call ends with


@numba.njit(cache=True, nogil=True, inline="always")
def _above(count: Any, pair: Any, other_count: Any, other_pair: Any) -> Any:
    """More frequent, or of lower ids where both are as frequent."""
    return count > other_count or (count == other_count and pair < other_pair)


@numba.njit(cache=True, nogil=True)
def _push(heap: Any, counts: Any, keys: Any, size: int, pair: int) -> None:
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if not _above(counts[pair], keys[pair], heap[parent, 0], keys[heap[parent, 1]]):
            break
        heap[at, 0], heap[at, 1] = heap[parent, 0], heap[parent, 1]
        at = parent
    heap[at, 0], heap[at, 1] = counts[pair], pair


@numba.njit(cache=True, nogil=True)
def _pop(heap: Any, keys: Any, size: int) -> None:
    """Take away the top of a heap of `size`."""
    size -= 1
    count, pair = heap[size, 0], heap[size, 1]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _above(
            heap[child + 1, 0], keys[heap[child + 1, 1]], heap[child, 0], keys[heap[child, 1]]
        ):
            child += 1
        if not _above(heap[child, 0], keys[heap[child, 1]], count, keys[pair]):
            break
        heap[at, 0], heap[at, 1] = heap[child, 0], heap[child, 1]
        at = child
    heap[at, 0], heap[at, 1] = count, pair


@numba.njit(cache=True, nogil=True, inline="always")
def _change(
    left: Any, right: Any, change: Any, place: int, table: Any, shift: int, keys: Any, counts: Any, ends: Any, places: Any, tally: Any
) -> Any:  # fmt: skip
    """Change a pair's count, and where it is more, note the place; the pair's number."""
    key = ((U64(left) + U64(1)) << U64(32)) | U64(right)
    slot = find(table, shift, key)
    if table[slot] == ZERO:
        pair = tally[PAIRS]
        table[slot], table[slot + 1] = key, U64(pair)
        keys[pair], counts[pair], ends[pair, 0], ends[pair, 1], ends[pair, 2] = key, 0, -1, -1, 0
        tally[PAIRS] += 1
    pair = np.int64(table[slot + 1])
    counts[pair] += change
    if change > 0:
        one = tally[PLACES]
        places[one, 0], places[one, 1] = place, -1
        if ends[pair, 1] < 0:
            ends[pair, 0] = one
        else:
            places[ends[pair, 1], 1] = one
        ends[pair, 1] = one
        ends[pair, 2] += 1
        tally[PLACES] += 1
    return pair


@numba.njit(cache=True, nogil=True)
def start(
    words: Any, bounds: Any, weights: Any, byte_ids: Any, symbols: Any, links: Any, table: Any, shift: int, keys: Any,
    counts: Any, ends: Any, places: Any, heap: Any, tally: Any,
) -> None:  # fmt: skip
    """Lay out the symbols of all pretokens, count their pairs, of which there are 65,536 at most, and put those on the heap.

    Args:
        symbols: (n,) int32, out. links: (n, 3) int32, out: the symbols before and after (-1: none), and the pretoken.
    """
    for word in range(len(weights)):
        begin, end = bounds[word], bounds[word + 1]
        for i in range(begin, end):
            symbols[i] = byte_ids[words[i]]
            links[i, 0] = i - 1 if i > begin else -1
            links[i, 1] = i + 1 if i + 1 < end else -1
            links[i, 2] = word
        for i in range(begin, end - 1):
            _change(symbols[i], symbols[i + 1], weights[word], i, table, shift, keys, counts, ends, places, tally)
    for pair in range(tally[PAIRS]):
        _push(heap, counts, keys, tally[HEAP], pair)
        tally[HEAP] += 1


@numba.njit(cache=True, nogil=True)
def learn(
    weights: Any, size: int, symbols: Any, links: Any, table: Any, shift: int, keys: Any, counts: Any, ends: Any, seen: Any, places: Any,
    heap: Any, hashes: Any, powers: Any, tokens: Any, tokens_shift: int, merges: Any, tally: Any,
) -> int:  # fmt: skip
    """Learn merges until there are `size` tokens, or no pair is left, or what comes next may not fit.

    Args:
        weights: how often each pretoken was met.
        table: pair -> its number. keys, counts, ends, seen: by number: the pair itself, its count, its first and last place and how many
            there are (n, 3), and the merge that made it last.
        places: (n, 2) int32, where a pair stood when it was made, and the next such place of this pair.
        heap: (n, 2) int64, counts and pairs.
        hashes, powers: by token: a hash of its bytes, and the multiplier to the power of their number. tokens: a table of hashes to tokens.
        merges: (n, 3) int32, out: two tokens, and what they become.
    """
    while tally[TOKENS] < size and tally[HEAP] > 0:
        count, pair = heap[0, 0], heap[0, 1]
        if count != counts[pair]:
            _pop(heap, keys, tally[HEAP])
            tally[HEAP] -= 1
            if counts[pair] > 0:
                _push(heap, counts, keys, tally[HEAP], pair)
                tally[HEAP] += 1
            continue
        if count < 1:
            break
        more = 2 * ends[pair, 2]
        if tally[PAIRS] + more > len(keys) or 8 * (tally[PAIRS] + more) > 3 * len(table):
            return PAIRS_FULL
        if tally[PLACES] + more > len(places):
            return PLACES_FULL
        if tally[HEAP] + more > len(heap):
            return HEAP_FULL
        _pop(heap, keys, tally[HEAP])
        tally[HEAP] -= 1
        left, right = np.int32((keys[pair] >> U64(32)) - U64(1)), np.int32(keys[pair] & U64(0xFFFFFFFF))
        # The same bytes may have been merged in another way before: then it is that token.
        value, power = hashes[left] * powers[right] + hashes[right], powers[left] * powers[right]
        slot = find(tokens, tokens_shift, mix(value + power) | U64(1))
        if tokens[slot] == ZERO:
            made = tally[TOKENS]
            tokens[slot], tokens[slot + 1] = mix(value + power) | U64(1), U64(made)
            hashes[made], powers[made] = value, power
            tally[TOKENS] += 1
        made = np.int32(tokens[slot + 1])
        step = tally[MERGES]
        merges[step, 0], merges[step, 1], merges[step, 2] = left, right, made
        tally[MERGES] += 1
        first_new = tally[PLACES]
        place = ends[pair, 0]
        while place >= 0:
            i = places[place, 0]
            place = places[place, 1]
            j = links[i, 1]
            if symbols[i] != left or j < 0 or symbols[j] != right:
                continue
            weight = weights[links[i, 2]]
            before, after = links[i, 0], links[j, 1]
            symbols[i], symbols[j] = made, -1
            links[i, 1] = after
            if before >= 0:
                _change(symbols[before], left, -weight, 0, table, shift, keys, counts, ends, places, tally)
                other = _change(symbols[before], made, weight, before, table, shift, keys, counts, ends, places, tally)
                seen[other] = -1 - step
            if after >= 0:
                links[after, 0] = i
                _change(right, symbols[after], -weight, 0, table, shift, keys, counts, ends, places, tally)
                other = _change(made, symbols[after], weight, i, table, shift, keys, counts, ends, places, tally)
                seen[other] = -1 - step
        for new in range(first_new, tally[PLACES]):  # each pair that was made goes onto the heap once
            i = places[new, 0]
            if symbols[i] < 0 or links[i, 1] < 0:
                continue
            slot = find(table, shift, ((U64(symbols[i]) + U64(1)) << U64(32)) | U64(symbols[links[i, 1]]))
            other = np.int64(table[slot + 1])
            if table[slot] != ZERO and seen[other] == -1 - step and counts[other] > 0:
                seen[other] = step
                _push(heap, counts, keys, tally[HEAP], other)  # pyright: ignore[reportArgumentType]
                tally[HEAP] += 1
    return DONE


@numba.njit(cache=True, nogil=True)
def name_bytes(byte_ids: Any, hashes: Any, powers: Any, tokens: Any, tokens_shift: int) -> None:
    """Enter the tokens of single bytes among the hashes."""
    for byte in range(256):
        made = byte_ids[byte]
        hashes[made], powers[made] = mix(U64(byte + 1)), MULTIPLIER
        key = mix(hashes[made] + powers[made]) | U64(1)
        slot = find(tokens, tokens_shift, key)
        tokens[slot], tokens[slot + 1] = key, U64(made)
