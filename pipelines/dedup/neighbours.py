"""Which documents are near by cosine: each is compared with those that are kept, in the order of preference."""

from __future__ import annotations

import numpy as np

from pipelines.texts.columns import Array


def near(vectors: Array, order: Array, threshold: float, memory: int) -> tuple[Array, Array]:
    """Go through documents in `order`; each is kept unless its cosine with a kept one is `threshold` or more.

    All pairs are compared: N**2 / 2 products, in blocks that fit into `memory` bytes.

    Returns:
        (N,) the kept document that is nearest, or -1 for itself; (N,) the cosine of the two.
    """
    count, width = vectors.shape
    kept_by, similarity = np.full(count, -1, np.int64), np.zeros(count)
    kept = np.empty((count, width), np.float32)
    names = np.empty(count, np.int64)
    size = 0
    step = max(min(1024, memory // (8 * max(count, 1))), 1)
    for start in range(0, count, step):
        block = order[start : start + step]
        with_kept = vectors[block] @ kept[:size].T
        among = vectors[block] @ vectors[block].T
        first = size
        stays: list[int] = []
        for i, document in enumerate(block.tolist()):
            best, value = -1, -1.0
            if first:
                best = int(with_kept[i].argmax())
                value = float(with_kept[i, best])
                best = int(names[best])
            for j in stays:
                if among[i, j] > value:
                    best, value = int(block[j]), float(among[i, j])
            if best >= 0 and value >= threshold:
                kept_by[document], similarity[document] = best, min(value, 1.0)
                continue
            stays.append(i)
            kept[size], names[size] = vectors[document], document
            size += 1
    return kept_by, similarity
