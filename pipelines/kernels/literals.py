"""Which texts hold one of a few byte strings."""

from __future__ import annotations

from typing import Any

import numba

from pipelines.kernels.bytemasks import BLOCK, ONE, equals, trailing_zeros
from pipelines.kernels.word_hashes import U64


@numba.njit(cache=True, nogil=True)
def holding(data: Any, offsets: Any, strings: Any, bounds: Any, found: Any) -> int:
    """Mark in `found` each text that holds one of the strings; how many there are.

    Args:
        data: the texts, and 64 bytes more.
        strings, bounds: string s is `strings[bounds[s]:bounds[s + 1]]`.
    """
    count = 0
    for text in range(len(found)):
        begin, end = offsets[text], offsets[text + 1]
        found[text] = 0
        for at in range(begin, end, BLOCK):
            bits = U64(0)
            for s in range(len(bounds) - 1):
                if s == 0 or strings[bounds[s]] != strings[bounds[s - 1]]:
                    bits |= equals(data, at, strings[bounds[s]])
            while bits and not found[text]:
                i = at + trailing_zeros(bits)
                bits &= bits - ONE
                for s in range(len(bounds) - 1):
                    size = bounds[s + 1] - bounds[s]
                    k = 0
                    while k < size and i + size <= end and data[i + k] == strings[bounds[s] + k]:
                        k += 1
                    if k == size:
                        found[text] = 1
                        break
            if found[text]:
                count += 1
                break
    return count
