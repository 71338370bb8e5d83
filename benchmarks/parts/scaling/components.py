"""Connected components of 10^8 edges: ours against scipy's partition, with time and memory.

Documents' degrees are simulated as dedup sees them: sets of duplicates whose sizes follow a power law (a few of millions, most of two
or three), in each of 14 bands a part of a set's members in one bucket, which leaves edges between neighbours; and chains, whose documents
know the next one only. The numbers of documents are shuffled, so that no order helps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.scaling.bench import Bench, borrowed

BANDS = 14
IN_A_BUCKET = 0.6  # of a set's members, in each band
CHAINED = 0.05  # of all documents
CHAIN = 10_000
PIECE = 1 << 20
Array = np.ndarray[Any, np.dtype[Any]]


def edges(wanted: int, seed: int = 0) -> tuple[int, Iterator[Array]]:
    """(number of documents, edges): exactly `wanted` edges as (N, 2) int32 arrays of at most `PIECE`; the same whenever they are drawn."""
    count = wanted // 2
    chained = int(count * CHAINED)

    def pieces() -> Iterator[Array]:
        rng = np.random.default_rng(seed)
        number = rng.permutation(count).astype(np.int32)
        # Sets lie one after the other: `of` is the set of each document.
        sizes = np.minimum(rng.pareto(1.3, count // 2) + 1.5, count // 20).astype(np.int64)
        of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[: count - chained]
        del sizes
        left = wanted
        links = np.arange(count - chained, count - 1)
        links = links[(links - (count - chained)) % CHAIN != CHAIN - 1]
        for at in range(0, len(links), PIECE):
            some = links[at : at + PIECE]
            yield np.stack([number[some], number[some + 1]], 1)
            left -= len(some)
        while left > 0:
            for at in range(0, len(of), 2 * PIECE):
                here = np.flatnonzero(rng.random(min(2 * PIECE, len(of) - at)) < IN_A_BUCKET) + at
                near = np.flatnonzero(of[here[1:]] == of[here[:-1]])
                made = np.stack([number[here[near]], number[here[near + 1]]], 1)
                for start in range(0, len(made), PIECE):
                    some = made[start : start + min(PIECE, left)]
                    if len(some):
                        yield some
                        left -= len(some)
                if left <= 0:
                    return

    return count, pieces()


def canonical(labels: Array) -> Array:
    """The first member's number for each label, so that equal partitions are equal arrays."""
    first = np.empty(int(labels.max()) + 1, np.int64)
    first[labels[::-1]] = np.arange(len(labels) - 1, -1, -1)
    return first[labels]


def components(bench: Bench) -> None:
    ours = borrowed("pipelines.dedup.components", "components")
    wanted = bench.size(100_000_000, 200_000)
    ours([np.array([[0, 1]], np.int32)], 2)  # loads compiled code
    count, pieces = edges(wanted)
    drawn = Drawn(pieces)
    before = forget_peak()
    started, cpu = time.monotonic(), time.process_time()
    labels = np.asarray(ours(drawn, count))
    took = time.monotonic() - started - drawn.wall_s, time.process_time() - cpu - drawn.cpu_s
    bench.number(
        edges=wanted, documents=count, ours_s=round(took[0], 1), ours_cpu_s=round(took[1], 1),
        ours_peak_mb=peak_mb(), before_mb=before, drawing_s=round(drawn.wall_s, 1),
    )  # fmt: skip
    mine = canonical(labels)
    del labels
    bench.number(components=int((mine == np.arange(count)).sum()), largest=int(np.bincount(mine).max()))
    theirs = scipy_components(bench, wanted)
    bench.claim("components_equal_scipy", bool(np.array_equal(mine, canonical(theirs))), edges=wanted)


class Drawn:
    """Pieces of edges, and what it took to draw them, which is no part of what is measured."""

    def __init__(self, pieces: Iterator[Array]) -> None:
        self._pieces = pieces
        self.wall_s = self.cpu_s = 0.0

    def __iter__(self) -> Iterator[Array]:
        while True:
            wall, cpu = time.monotonic(), time.process_time()
            some = next(self._pieces, None)
            self.wall_s += time.monotonic() - wall
            self.cpu_s += time.process_time() - cpu
            if some is None:
                return
            yield some


def scipy_components(bench: Bench, wanted: int) -> Array:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, drawn = edges(wanted)
    pairs = np.empty((wanted, 2), np.int32)
    at = 0
    for some in drawn:
        pairs[at : at + len(some)] = some
        at += len(some)
    assert at == wanted
    before = forget_peak()
    started = time.monotonic()
    graph = coo_array((np.ones(wanted, np.int8), (pairs[:, 0], pairs[:, 1])), (count, count)).tocsr()
    _, labels = connected_components(graph, directed=False)
    bench.number(scipy_s=round(time.monotonic() - started, 1), scipy_peak_mb=peak_mb(), scipy_before_mb=before)
    return labels


def forget_peak() -> float:
    """Have the kernel begin anew with this process's high-water mark; MB that it has resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    said = Path("/proc/self/status").read_text()
    return round(int(said.split("VmHWM:")[1].split()[0]) / 1024, 1)
