"""How often each of GPT-2's pretokens stands in texts (see `pipelines.tokenize.counts`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.pretoken_ends import GPT2, begin_gpt2, mark, next_begin, pretoken_end
from pipelines.kernels.pretoken_table import ZERO, find, pretoken_key
from pipelines.kernels.word_hashes import U64

# What a call tells in `tally`, and goes on from.
TEXT, PLACE, KNOWN, BYTES, PLAIN = range(5)


@numba.njit(cache=True, nogil=True, inline="always")
def _number(
    data: Any, i: int, stop: int, table: Any, shift: int, counts: Any, words: Any, bounds: Any, known: int
) -> Any:
    """The number of a pretoken, which is `known` if it is new; -1 if there is no room for a new one."""
    key = pretoken_key(data, i, stop)
    slot = find(table, shift, key)
    if table[slot] != ZERO:
        return np.int64(table[slot + 1])
    at = bounds[known]
    if known + 1 >= len(bounds) or 8 * known >= 3 * len(table) or at + stop - i > len(words):
        return -1
    table[slot], table[slot + 1] = key, U64(known)
    counts[known] = 0
    for k in range(i, stop):
        words[at + k - i] = data[k]
    bounds[known + 1] = at + stop - i
    return known


@numba.njit(cache=True, nogil=True)
def count(
    data: Any, offsets: Any, kinds: Any, masks: Any, begins: Any, table: Any, shift: int, counts: Any, words: Any, bounds: Any,
    alone: Any, tally: Any,
) -> int:  # fmt: skip
    """Count the pretokens of texts, going on where `tally` says; 0 if there is no room for a new one.

    Args:
        data: the texts, and 64 bytes more.
        table: pretoken -> its number. counts, words, bounds: by number, how often it was met and its bytes; `bounds` has one more.
        alone: 1, out, for a text with a character that is unknown; nothing of it is counted.
        tally: (5,) int64, in and out: the text, the place in it, pretokens, their bytes, whether `begins` is of use.
    """
    text, i, known = tally[TEXT], tally[PLACE], tally[KNOWN]
    if text == 0 and i == 0:
        tally[PLAIN] = mark(data, offsets[len(offsets) - 1], kinds, masks)
        if tally[PLAIN]:
            begin_gpt2(data, offsets[len(offsets) - 1], GPT2, masks, begins)
    plain = tally[PLAIN]
    done = 1
    while text < len(offsets) - 1 and done:
        end = offsets[text + 1]
        while i < end:
            stop = next_begin(data, i, end, begins) if plain else pretoken_end(GPT2, data, i, end, kinds, masks)
            if stop < 0:
                alone[text] = 1
                at = offsets[text]
                while at < i:  # what was counted of it
                    stop = pretoken_end(GPT2, data, at, end, kinds, masks)
                    counts[_number(data, at, stop, table, shift, counts, words, bounds, known)] -= 1
                    at = stop
                i = end
                break
            number = _number(data, i, stop, table, shift, counts, words, bounds, known)
            if number < 0:
                done = 0
                break
            known = max(known, number + 1)
            counts[number] += 1
            i = stop
        if done:
            text += 1
            i = end
    tally[TEXT], tally[PLACE], tally[KNOWN], tally[BYTES] = text, i, known, bounds[known]
    return done


@numba.njit(cache=True, nogil=True)
def add(
    data: Any, offsets: Any, weights: Any, table: Any, shift: int, counts: Any, words: Any, bounds: Any, tally: Any
) -> int:
    """Add counts of pretokens, which stand one after the other in `data`; else as `count`."""
    at, known = tally[TEXT], tally[KNOWN]
    done = 1
    while at < len(weights):
        number = _number(data, offsets[at], offsets[at + 1], table, shift, counts, words, bounds, known)
        if number < 0:
            done = 0
            break
        known = max(known, number + 1)
        counts[number] += weights[at]
        at += 1
    tally[TEXT], tally[KNOWN], tally[BYTES] = at, known, bounds[known]
    return done
