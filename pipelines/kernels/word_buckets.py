"""Words and pairs of neighbouring words of texts, hashed into the buckets of a linear model."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.word_hashes import COMBINE, U64, hash_words, mix


@numba.njit(cache=True, nogil=True)
def word_buckets(
    data: Any, offsets: Any, size: int, lower: Any, starts: Any, stops: Any, words: Any, out: Any, ends: Any
) -> None:
    """Write the buckets of each text's words and pairs to `out`; `ends[t]` is where those of text t end.

    Args:
        size: how many buckets there are, a power of two.
        lower, starts, stops, words: room for the longest text.
    """
    mask = U64(size - 1)
    at = 0
    for t in range(len(ends)):
        before = U64(0)
        for i in range(hash_words(data, offsets[t], offsets[t + 1], (lower, starts, stops), words)):
            word = mix(words[i])
            out[at] = word & mask
            at += 1
            if i:
                out[at] = mix(before * COMBINE + word) & mask
                at += 1
            before = word
        ends[t] = at


@numba.njit(cache=True, nogil=True)
def margins(
    data: Any, offsets: Any, weights: Any, lower: Any, starts: Any, stops: Any, words: Any, out: Any
) -> None:  # fmt: skip
    """The sum of the weights of each text's words and pairs, over the root of how many these are."""
    mask = U64(len(weights) - 1)
    for t in range(len(out)):
        before, total = U64(0), 0.0
        count = hash_words(data, offsets[t], offsets[t + 1], (lower, starts, stops), words)
        for i in range(count):
            word = mix(words[i])
            total += weights[word & mask]
            if i:
                total += weights[mix(before * COMBINE + word) & mask]
            before = word
        out[t] = total / np.sqrt(max(2 * count - 1, 1))
