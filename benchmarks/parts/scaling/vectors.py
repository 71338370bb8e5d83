"""Vectors as embeddings of texts are: in clusters around topics, with pairs planted near the threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
WIDTH = 384
BLOCK = 8192


def embeddings(count: int, seed: int = 0) -> Array:
    """(count, 384) float32 of length 1. A topic for a hundred vectors, whose members have a cosine of about .7 with each other and of
    about .3 with those of others; a fifth are partners of another one, at a cosine drawn from .90 to .99."""
    rng = np.random.default_rng(seed)
    partners = count // 5
    topics = _unit(rng.standard_normal((max(count // 100, 1), WIDTH), np.float32) + 0.65 * rng.standard_normal(WIDTH))
    made = np.empty((count, WIDTH), np.float32)
    for at in range(0, count, BLOCK):
        size = min(BLOCK, count - at)
        own = _unit(rng.standard_normal((size, WIDTH), np.float32))
        made[at : at + size] = _unit(0.84 * topics[rng.integers(0, len(topics), size)] + 0.54 * own)
    source = rng.permutation(count)
    for at in range(0, partners, BLOCK):
        one, two = (
            source[at : min(at + BLOCK, partners)],
            source[partners + at : min(partners + at + BLOCK, 2 * partners)],
        )
        cosine = rng.uniform(0.90, 0.99, (len(one), 1)).astype(np.float32)
        away = rng.standard_normal((len(one), WIDTH), np.float32)
        away = _unit(away - (away * made[two]).sum(1, keepdims=True) * made[two])
        made[one] = cosine * made[two] + np.sqrt(1 - cosine**2) * away
    return _unit(made)


def all_pairs(vectors: Array, threshold: float, every: int = 1) -> Array:
    """(P, 2) int64, the lower number first and sorted: every pair of this cosine or more, by blocks of products.

    Args:
        every: of the blocks of rows only one in so many, which are compared with all that come after.
    """
    found = [np.zeros((0, 2), np.int64)]
    for at in range(0, len(vectors), every * BLOCK):
        mine = vectors[at : at + BLOCK]
        for other in range(at, len(vectors), BLOCK):
            here = np.flatnonzero(mine @ vectors[other : other + BLOCK].T >= threshold)
            width = min(BLOCK, len(vectors) - other)
            pairs = np.stack([at + here // width, other + here % width], 1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def products(count: int, every: int) -> float:
    """The share of all pairs that `all_pairs` compares."""
    rows = range(0, count, every * BLOCK)
    return sum(min(BLOCK, count - at) * (count - at) for at in rows) / sum(
        min(BLOCK, count - at) * (count - at) for at in range(0, count, BLOCK)
    )


def _unit(vectors: Array) -> Array:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
