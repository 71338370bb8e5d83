"""Best-fit decreasing (see `pipelines.tokenize.packing`)."""

from __future__ import annotations

from typing import Any

import numba


@numba.njit(cache=True, nogil=True)
def best_fit(lengths: Any, order: Any, block: int, head: Any, after: Any, bins: Any, offset: Any) -> int:
    """Put pieces into blocks in this order, each where it leaves the least room; return how many blocks there are.

    Args:
        head, after: (block + 1,) and (pieces,) int64, -1: blocks with so much room left, as linked lists.
        bins, offset: (pieces,) int64, out: the block of each piece, and where in it.
    """
    count = 0
    for piece in order:
        size = lengths[piece]
        left = size
        while left <= block and head[left] < 0:
            left += 1
        if left > block:
            chosen, left = count, block
            count += 1
        else:
            chosen = head[left]
            head[left] = after[chosen]
        bins[piece], offset[piece] = chosen, block - left
        after[chosen] = head[left - size]
        head[left - size] = chosen
    return count
