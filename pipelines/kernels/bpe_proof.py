"""Whether ids are what a BPE makes of a pretoken, found without merging anything (see `pipelines.tokenize.derivations`).

A token is made by a last merge, of two tokens that were made so before. Beside each other, two tokens stay two if no merge across the boundary
between them comes before one that they are made by; and ids are what BPE makes of their bytes if that is so of all neighbours. In steps (V, 3):
1 + the rank of the merge that makes a token last, the two ids that it merges. 0 for a byte, `NONE` for what no merges make of its own bytes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.bytemasks import word_at
from pipelines.kernels.pretoken_ids import EMPTY, ids_at
from pipelines.kernels.pretoken_table import ZERO, find, pretoken_key
from pipelines.kernels.word_hashes import LOW, U64

NONE = 0xFFFFFFFF
RANK, LEFT, RIGHT = range(3)


@numba.njit(cache=True, nogil=True)
def apart(left: Any, right: Any, before: Any, steps: Any, merges: Any, shift: int) -> bool:
    """Whether two tokens are made, each of its own bytes, before a merge across the boundary that comes before the step `before`.

    Undoes, from the last one on, the merges of what stands at the boundary: what stands there then can't have been merged if it would have
    come after the one undone. Of equal merges the first comes first.
    """
    while True:
        slot = find(merges, shift, ((U64(left) + U64(1)) << U64(32)) | U64(right))
        if merges[slot] != ZERO and np.int64(merges[slot + 1] >> U64(32)) + 1 < before:
            return False
        left_step, right_step = np.int64(steps[left, RANK]), np.int64(steps[right, RANK])
        if left_step > right_step:
            before, left = left_step, steps[left, RIGHT]
        elif right_step:
            before, right = right_step + 1, steps[right, LEFT]
        else:
            return True


@numba.njit(cache=True, nogil=True)
def derive(pairs: Any, merges: Any, shift: int, byte_ids: Any, steps: Any) -> None:
    """Write how each token is made.

    Args:
        pairs: (M, 3) uint32, two ids and what they become, by rank. merges: the same as a table (`pipelines.kernels.pretoken_ids`).
        steps: (V, 3) uint32, out.
    """
    for token in range(len(steps)):
        steps[token, RANK] = NONE
    for byte in range(len(byte_ids)):
        steps[byte_ids[byte], RANK] = 0
    for rank in range(len(pairs)):
        left, right, made = pairs[rank, 0], pairs[rank, 1], pairs[rank, 2]
        slot = find(merges, shift, ((U64(left) + U64(1)) << U64(32)) | U64(right))
        if np.int64(merges[slot + 1] >> U64(32)) != rank or steps[made, RANK] != NONE:
            continue  # what the same pair becomes later counts; and a token is made in one way
        if (
            steps[left, RANK] != NONE
            and steps[right, RANK] != NONE
            and apart(left, right, rank + 1, steps, merges, shift)
        ):
            steps[made, RANK], steps[made, LEFT], steps[made, RIGHT] = rank + 1, left, right


@numba.njit(cache=True, nogil=True)
def spells(data: Any, i: int, stop: int, ids: Any, count: int, spelling: Any, bounds: Any) -> bool:
    """Whether the bytes of these tokens, one after the other, are those of a pretoken. 8 readable bytes follow data and spelling."""
    for k in range(count):
        at, end = bounds[ids[k]], bounds[ids[k] + 1]
        if end - at > stop - i:
            return False
        while at + 8 < end:
            if word_at(data, i) != word_at(spelling, at):
                return False
            i, at = i + 8, at + 8
        if (word_at(data, i) ^ word_at(spelling, at)) & LOW[end - at]:
            return False
        i += end - at
    return i == stop


@numba.njit(cache=True, nogil=True)
def derived(ids: Any, count: int, steps: Any, merges: Any, shift: int) -> bool:
    """Whether ids are what BPE makes of their bytes."""
    for k in range(count):
        if steps[ids[k], RANK] == NONE or (k and not apart(ids[k - 1], ids[k], NONE, steps, merges, shift)):
            return False
    return True


@numba.njit(cache=True, nogil=True)
def unproven(
    data: Any, news: Any, new: int, table: Any, arena: Any, spelling: Any, bounds: Any, steps: Any, merges: Any, shift: int, vocabulary: Any,
    vocabulary_shift: int, ids: Any, doubts: Any,
) -> int:  # fmt: skip
    """Which of the new pretokens have ids in the table that can't be shown to be right; how many of them.

    Args:
        data, news, table, arena, vocabulary, ids: as `pipelines.kernels.pretoken_ids` has them; the first `new` are looked at.
        spelling, bounds: token t has the bytes `spelling[bounds[t]:bounds[t + 1]]`.
        doubts: the numbers of the pretokens, out.
    """
    count = 0
    for one in range(new):
        i, stop = news[one, 0], news[one, 1]
        length = ids_at(news[one, 2], table, arena, ids)
        right = spells(data, i, stop, ids, length, spelling, bounds)
        token = False  # as it is, whatever the merges
        if right and len(vocabulary) > EMPTY:
            token = vocabulary[find(vocabulary, vocabulary_shift, pretoken_key(data, i, stop))] != ZERO
        if not right or (length != 1 if token else not derived(ids, length, steps, merges, shift)):
            doubts[count] = one
            count += 1
    return count
