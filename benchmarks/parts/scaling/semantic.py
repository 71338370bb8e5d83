"""Near neighbours among embeddings by an index, against all pairs: recall, time, and what a million costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.parts.scaling.bench import Bench, borrowed
from benchmarks.parts.scaling.components import forget_peak, peak_mb
from benchmarks.parts.scaling.usage import busy
from benchmarks.parts.scaling.vectors import Array, all_pairs, embeddings

THRESHOLD = 0.95


def semantic(bench: Bench) -> None:
    neighbours = borrowed("pipelines.dedup.neighbours", "pairs")
    bench.number(busy_before=busy())
    with bench.attempt("against all pairs"):
        _against_all_pairs(bench, neighbours, embeddings(bench.size(200_000, 4_000)))
    with bench.attempt("a million"):
        many = embeddings(bench.size(1_000_000, 8_000), seed=1)
        told, found = _timed(lambda: neighbours(many, THRESHOLD))
        bench.number(million={**told, "vectors": len(many), "vectors_mb": many.nbytes >> 20, "pairs": len(found)})


def _against_all_pairs(bench: Bench, neighbours: Any, vectors: Array) -> None:
    index, found = _timed(lambda: neighbours(vectors, THRESHOLD))
    bench.number(vectors=len(vectors), index={**index, "pairs": len(found)})
    everything, truth = _timed(lambda: all_pairs(vectors, THRESHOLD))
    bench.number(all_pairs={**everything, "pairs": len(truth)})
    known = np.isin(_numbers(truth, len(vectors)), _numbers(found, len(vectors)))
    wrong = _wrong(vectors, found)
    bench.claim("semantic_recall", round(float(known.mean()), 5), pairs=len(truth), below_threshold=wrong)
    wall, cpu = (round(index[what] / everything[what], 3) for what in ("wall_s", "cpu_s"))
    bench.claim("semantic_time_over_all_pairs", wall, cpu=cpu, wall_s=[index["wall_s"], everything["wall_s"]])


def _timed(work: Any) -> tuple[dict[str, float], Array]:
    before = forget_peak()
    wall, cpu = time.monotonic(), time.process_time()
    made = np.asarray(work())
    took = {"wall_s": round(time.monotonic() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)}
    return {**took, "peak_mb": peak_mb(), "before_mb": before}, made


def _numbers(pairs: Array, count: int) -> Array:
    """One number a pair, whichever of the two comes first."""
    return pairs.min(1).astype(np.int64) * count + pairs.max(1)


def _wrong(vectors: Array, pairs: Array) -> int:
    """Pairs below the threshold, by a hair's breadth more than rounding."""
    if not len(pairs):
        return 0
    cosines = np.concatenate(
        [
            (vectors[some[:, 0]] * vectors[some[:, 1]]).sum(1)
            for some in np.array_split(pairs, len(pairs) // 100_000 + 1)
        ]
    )
    return int((cosines < THRESHOLD - 1e-5).sum())
