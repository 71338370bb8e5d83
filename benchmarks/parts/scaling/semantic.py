"""Near neighbours among embeddings as `dedup` finds them, against all pairs: recall, time, and what a million costs.

Both have one thread. All pairs are products of blocks; of the blocks of rows only one in four is compared (with all that come after it),
and its time is taken times that: what is left out is more of the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.parts.scaling.bench import Bench, borrowed
from benchmarks.parts.scaling.components import forget_peak, peak_mb
from benchmarks.parts.scaling.usage import busy
from benchmarks.parts.scaling.vectors import Array, all_pairs, embeddings, products

THRESHOLD = 0.95
EVERY = 4
MEMORY = 1 << 30  # bytes: dedup's `memory_gb`


def semantic(bench: Bench) -> None:
    near = borrowed("pipelines.dedup.neighbours", "near")
    bench.number(busy_before=busy())
    with threadpool_limits(1):
        with bench.attempt("against all pairs"):
            _against_all_pairs(bench, near, embeddings(bench.size(200_000, 4_000)))
        with bench.attempt("a million"):
            many = embeddings(bench.size(1_000_000, 8_000), seed=1)
            told, (kept_by, _) = _timed(lambda: near(many, np.arange(len(many)), THRESHOLD, MEMORY))
            bench.number(
                million={**told, "vectors": len(many), "vectors_mb": many.nbytes >> 20, "gone": _gone(kept_by)}
            )


def _against_all_pairs(bench: Bench, near: Any, vectors: Array) -> None:
    """A pair is found where one of the two goes; who goes must be near the one that is kept in its place."""
    count = len(vectors)
    index, (kept_by, _) = _timed(lambda: near(vectors, np.arange(count), THRESHOLD, MEMORY))
    bench.number(vectors=count, index={**index, "gone": _gone(kept_by)})
    every = EVERY if count > 100_000 else 1
    part, truth = _timed(lambda: all_pairs(vectors, THRESHOLD, every))
    share = products(count, every)
    whole = {name: round(part[name] / share, 2) for name in ("wall_s", "cpu_s")}
    bench.number(all_pairs={**whole, "measured": {**part, "share": round(share, 4)}, "pairs": len(truth)})
    found = (kept_by[truth] >= 0).any(1)
    gone = np.flatnonzero(kept_by >= 0)
    cosines = (vectors[gone] * vectors[kept_by[gone]]).sum(1)
    wrong = int((cosines < THRESHOLD - 1e-5).sum())
    bench.claim("semantic_recall", round(float(found.mean()), 5), pairs=len(truth), wrong=wrong)
    wall, cpu = (round(index[what] / whole[what], 3) for what in ("wall_s", "cpu_s"))
    bench.claim("semantic_time_over_all_pairs", wall, cpu=cpu, wall_s=[index["wall_s"], whole["wall_s"]])


def _gone(kept_by: Array) -> int:
    return int((kept_by >= 0).sum())


def _timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """What it took, and what it gave; `peak_mb` is of the process, which had `before_mb`."""
    before = forget_peak()
    wall, cpu = time.monotonic(), time.process_time()
    made = work()
    took = {"wall_s": round(time.monotonic() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)}
    return {**took, "peak_mb": peak_mb(), "before_mb": before}, made
