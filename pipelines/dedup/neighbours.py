"""Which documents are near by cosine: each is compared with those that are kept, in the order of preference.

Few are compared with all that are kept. Of many, each has a home, the nearest of some directions, and is compared with those whose home
is one of its own nearest (an inverted file: Sivic and Zisserman 2003). What is found so is verified in double precision, so that neither
a library's threads nor the order of its sums decide; what is missed is told by a sample of rows that are compared with all.
"""

from __future__ import annotations

import itertools

import numpy as np

from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array

ALL_PAIRS = 20_000  # documents that are compared with all that are kept
PROBES = 16
SAMPLE = 1000  # rows that are compared with all, to know the recall
MARGIN = 1e-4  # of single precision; what is nearer to the threshold is looked at in double
ROUNDS = 3
FIRST_BLOCK, BLOCK = 1024, 16384  # documents that are compared together; small at first, while nothing is removed yet
VERIFIED = 4096  # pairs at a time
PLACED = 1024  # documents whose homes are found at a time
A_HOME = 8  # rows of the sample for each of the directions that are drawn from it

_settle = kernel("pipelines.kernels.clusters", "settle")


def near(vectors: Array, order: Array, threshold: float, memory: int) -> tuple[Array, Array]:
    """Go through documents in `order`; each is kept unless its cosine with a kept one is `threshold` or more. Of more than `ALL_PAIRS`
    documents, with a kept one that it meets.

    Args:
        vectors: (N, width) float32 of length 1.
        memory: bytes for blocks of products.

    Returns:
        (N,) the kept document that is nearest, or -1 for itself; (N,) the cosine of the two.
    """
    count = len(vectors)
    if count <= ALL_PAIRS:
        return near_all(vectors, order, threshold, memory)
    lists = lists_for(count)
    centres = directions(vectors[sample_rows(count, A_HOME * lists)], lists, threshold)
    probes = np.concatenate([nearest(vectors[at : at + PLACED], centres) for at in range(0, count, PLACED)])
    return Homes(vectors[order], probes[order]).near_in_order(order, threshold)


def near_all(vectors: Array, order: Array, threshold: float, memory: int) -> tuple[Array, Array]:
    """As `near`, with all that are kept: N**2 / 2 products, in blocks that fit into `memory` bytes."""
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


def sample_rows(count: int, size: int) -> Array:
    """Rows that lie evenly among so many."""
    return np.unique(np.arange(min(size, count)) * count // max(min(size, count), 1))


def lists_for(count: int) -> int:
    """How many homes there are for so many documents."""
    return 2 << max(int(np.ceil(np.log2(max(count, 1)) / 2)), 1)


def directions(sample: Array, count: int, threshold: float) -> Array:
    """(C, width) at most `count` directions, of length 1, by which the rows of a sample fall into homes of like sizes: k-means on the
    sphere, from rows that are not near each other.
    """
    kept_by, _ = near_all(sample, np.arange(len(sample)), threshold, 1 << 28)
    apart = sample[kept_by < 0]
    made = apart[sample_rows(len(apart), count)]
    for _ in range(ROUNDS):
        home = (sample @ made.T).argmax(1)
        sums = np.zeros(made.shape, np.float64)
        np.add.at(sums, home, sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        made = np.where(norms > 0, sums / np.maximum(norms, 1e-12), made).astype(np.float32)
    return made


def nearest(vectors: Array, centres: Array, probes: int = PROBES) -> Array:
    """(N, probes) int32: the directions each vector is nearest to, the nearest first."""
    scores = vectors @ centres.T
    probes = min(probes, len(centres))
    found = np.argpartition(-scores, probes - 1, 1)[:, :probes]
    found.sort(1)
    order = np.argsort(-np.take_along_axis(scores, found, 1), 1, kind="stable")
    return np.take_along_axis(found, order, 1).astype(np.int32)


class Homes:
    """Documents by their homes, to be gone through in the order of preference.

    Args:
        vectors: (N, width) float32 of length 1, in that order. Row numbers are places in it.
        probes: (N, probes) the directions near each, its home first.
    """

    def __init__(self, vectors: Array, probes: Array) -> None:
        self.vectors, self.probes = vectors, probes
        home = probes[:, 0]
        self._members = np.argsort(home, kind="stable")
        self._begins = np.searchsorted(home[self._members], np.arange(int(probes.max(initial=0)) + 2))

    def near_in_order(self, order: Array, threshold: float) -> tuple[Array, Array]:
        """As the function `near`, for rows that are the documents in this order."""
        by_rank, like_rank = self.near(threshold)
        kept_by, likeness = np.full(len(order), -1, np.int64), np.zeros(len(order))
        kept_by[order] = np.where(by_rank >= 0, order[by_rank], -1)
        likeness[order] = like_rank
        return kept_by, likeness

    def near(self, threshold: float) -> tuple[Array, Array]:
        """As the function `near`, among those it meets: (N,) the row kept in a row's place or -1, (N,) their cosine."""
        count = len(self.vectors)
        kept_by, best = np.full(count, -1, np.int64), np.full(count, -1.0)
        start, size = 0, FIRST_BLOCK
        while start < count:
            end = min(start + size, count)
            rows, others = self._met(start, end, kept_by, threshold)
            likeness = self._cosines(rows, others)
            alike = np.flatnonzero(likeness >= threshold)
            order = alike[np.argsort(rows[alike], kind="stable")]
            _settle(rows[order], others[order], likeness[order], kept_by, best)
            start, size = end, min(2 * size, BLOCK)
        return kept_by, np.where(kept_by >= 0, np.minimum(best, 1.0), 0.0)

    def _met(self, start: int, end: int, kept_by: Array, threshold: float) -> tuple[Array, Array]:
        """Pairs that may be alike of a row of a block with one before it that is kept, or may be."""
        found_rows, found_others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        probes = self.probes[start:end]
        visits = np.argsort(probes.ravel(), kind="stable")
        homes = probes.ravel()[visits]
        cuts = np.flatnonzero(np.diff(homes, prepend=-1, append=-1))
        for low, high in itertools.pairwise(cuts.tolist()):
            home = homes[low]
            members = self._members[self._begins[home] : self._begins[home + 1]]
            members = members[: np.searchsorted(members, end)]
            members = members[kept_by[members] < 0]
            if len(members):
                rows = start + visits[low:high] // probes.shape[1]
                i, j = np.nonzero(self.vectors[rows] @ self.vectors[members].T >= threshold - MARGIN)
                before = members[j] < rows[i]
                found_rows.append(rows[i[before]])
                found_others.append(members[j[before]])
        return np.concatenate(found_rows), np.concatenate(found_others)

    def _cosines(self, rows: Array, others: Array) -> Array:
        """(E,) float64, each summed by itself."""
        made = np.empty(len(rows))
        for at in range(0, len(rows), VERIFIED):
            some = slice(at, at + VERIFIED)
            made[some] = np.einsum("ij,ij->i", self.vectors[rows[some]], self.vectors[others[some]], dtype=np.float64)
        return made

    def recall(self, threshold: float, size: int = SAMPLE) -> tuple[int, int]:
        """Of all pairs at the threshold that one of some rows belongs to: (how many are met, how many there are)."""
        sample = sample_rows(len(self.vectors), size)
        met = pairs = 0
        for low in range(0, len(self.vectors), BLOCK):
            i, j = np.nonzero(self.vectors[sample] @ self.vectors[low : low + BLOCK].T >= threshold)
            one, two = sample[i], low + j
            one, two = np.minimum(one, two)[one != two], np.maximum(one, two)[one != two]
            met += int((self.probes[two] == self.probes[one, :1]).any(1).sum())
            pairs += len(one)
        return met, pairs
