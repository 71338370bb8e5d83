"""Documents that buckets connect, however far round. The third phase, in one task, which leaves

    candidates  by group of files: documents that share a bucket with others that no exact copy stands for, and their batch
    followers   by batch: exact copies of candidates, which go where these go

Between two batches no bucket is shared, so that each is decided by itself. Components say no more than who is to be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from engine.stage.job import Job
from pipelines.dedup.buckets import BUCKETS
from pipelines.dedup.shuffle import Shuffle, Table
from pipelines.dedup.signatures import SIGNED
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array

CONNECTED = "connected/000000"
EDGES = 1 << 22  # at a time

_unite = kernel("pipelines.kernels.clusters", "unite")
_flatten = kernel("pipelines.kernels.clusters", "flatten")


def components(edges: Iterable[Array], count: int) -> Array:
    """Connected components of an undirected graph.

    Takes 4 bytes a node, 8 from 2**31 nodes on, and a chunk of the edges.

    Args:
        edges: arrays of (N, 2) integers.
        count: of the nodes, which are 0 to count - 1.

    Returns:
        (count,) for each node the lowest of its component.
    """
    parent = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)
    for some in edges:
        for at in range(0, len(some), EDGES):
            _unite(np.ascontiguousarray(some[at : at + EDGES], parent.dtype), parent)
    _flatten(parent)
    return parent


class Connecting:
    """
    Args:
        begins: (groups + 1,) the number of the first document of each group of files.
        ranges: of hashes.
        permutations, bands: of a signature.
        most: bytes that the sets and signatures of a batch take, unless one component alone takes more.
    """

    def __init__(
        self, job: Job, folder: str, begins: Array, ranges: int, permutations: int, bands: int, most: int
    ) -> None:  # fmt: skip
        self._shuffle, self._begins, self._most = Shuffle(job, folder), begins, most
        self._buckets = [f"{BUCKETS}/{index:06d}" for index in range(ranges)]
        self._each = 4 * permutations + 24 * bands + 64  # bytes of a candidate beside its set

    def __call__(self, _: int) -> dict[str, Any]:
        if (known := self._shuffle.facts(CONNECTED)) is not None:
            return known
        shuffle, groups, count = self._shuffle, len(self._begins) - 1, int(self._begins[-1])
        head = components((shuffle.part(name, "edges")["edges"] for name in self._buckets), count)
        copy = np.zeros(count, bool)
        for name in self._buckets:
            for group in range(groups):
                copy[shuffle.part(name, "copies", group)["document"]] = True
        met = np.bincount(head[~copy], minlength=count).astype(head.dtype)
        documents = np.flatnonzero((met[head] > 1) & ~copy)
        del met
        batch_of, batches = self._batches(documents, head[documents])
        candidate = np.full(count, -1, np.int32)
        del head, copy
        candidate[documents] = batch_of
        followers = self._followers(candidate)
        return shuffle.put(
            CONNECTED,
            {"candidates": len(documents), "batches": batches},
            candidates=Table.sorted_by(documents, self._begins, document=documents, batch=batch_of),
            followers=Table.sorted_by(
                candidate[followers[:, 0]],
                np.arange(batches + 1),
                original=followers[:, 0],
                document=followers[:, 1],
            ),
        )

    def _batches(self, documents: Array, heads: Array) -> tuple[Array, int]:
        """(the batch of each candidate, how many batches); components follow each other by their lowest documents."""
        size = np.empty(len(documents), np.int64)
        for group, (low, high) in enumerate(zip(self._begins[:-1].tolist(), self._begins[1:].tolist(), strict=True)):
            first, last = np.searchsorted(documents, [low, high])
            if last > first:
                counts = self._shuffle.part(f"{SIGNED}/{group:06d}", "documents")["counts"]
                size[first:last] = 8 * counts[documents[first:last] - low].astype(np.int64) + self._each
        names, which = np.unique(heads, return_inverse=True)
        before = np.cumsum(np.bincount(which, size, len(names))).astype(np.int64)
        before = np.append(0, before[:-1])[: len(names)]
        numbers, batch_of = np.unique(before // self._most, return_inverse=True)
        return batch_of[which].astype(np.int32), len(numbers)

    def _followers(self, candidate: Array) -> Array:
        """(F, 2): candidates and copies of theirs."""
        found = [np.zeros((0, 2), np.int64)]
        for name in self._buckets:
            for group in range(len(self._begins) - 1):
                pairs = self._shuffle.part(name, "copies", group)
                theirs = candidate[pairs["original"]] >= 0
                found.append(np.stack([pairs["original"][theirs], pairs["document"][theirs]], 1))
        return np.concatenate(found)
