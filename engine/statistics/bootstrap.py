"""Confidence intervals by the cluster bootstrap.

Answers to one prompt resemble each other, so prompts are drawn, not answers: an interval over answers would be too
narrow (Cameron, Gelbach and Miller 2008, "Bootstrap-based improvements for inference with clustered errors").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.seeds import generator

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A point estimate with the bounds of its 95 % interval; NaN where there was nothing to estimate from."""

    value: float
    low: float
    high: float


def mean(values: ArrayLike, clusters: Sequence[str], *seed: str | int, resamples: int = RESAMPLES) -> Interval:
    """Mean of the cluster means, with its percentile interval over resampled clusters.

    Every prompt counts the same, however many answers it has. Where all clusters agree on 0 or on 1, resampling them
    shows no spread, so the interval of a proportion is then Wilson's for that many clusters.
    """
    per_cluster, _ = _cluster_means(np.asarray(values, dtype=np.float64), clusters)
    n = len(per_cluster)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    value = float(per_cluster.mean())
    if n > 1 and np.ptp(per_cluster) == 0 and value in (0.0, 1.0):
        return _wilson_at_bound(value, n)
    means = per_cluster[generator("bootstrap", *seed).integers(0, n, size=(resamples, n))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def statistic(
    clusters: Sequence[str],
    compute: Callable[[NDArray[np.int64]], float],
    *seed: str | int,
    resamples: int = 500,
) -> Interval:
    """Any statistic of rows, with its percentile interval over resampled clusters.

    Args:
        compute: takes row indices (repeated as drawn) and gives the statistic.
    """
    names, inverse = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    size = np.bincount(inverse)
    start = np.cumsum(size) - size
    random = generator("bootstrap", *seed)

    def rows() -> NDArray[np.int64]:
        """The rows of as many clusters as there are, drawn with replacement."""
        c = random.integers(0, len(names), size=len(names))
        first = np.cumsum(size[c]) - size[c]
        return order[np.repeat(start[c] - first, size[c]) + np.arange(size[c].sum())]

    drawn = [compute(rows()) for _ in range(resamples)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(float(compute(np.arange(len(inverse)))), float(low), float(high))


def _cluster_means(values: NDArray[np.float64], clusters: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
    if len(values) == 0:
        return np.empty(0), []
    names, inverse = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    return np.bincount(inverse, weights=values) / np.bincount(inverse), [str(name) for name in names]


def _wilson_at_bound(value: float, n: int) -> Interval:
    """Wilson's 95 % interval for 0 or n successes in n trials."""
    z2 = 1.959963984540054**2
    far = z2 / (n + z2)
    return Interval(value, 0.0, far) if value == 0.0 else Interval(value, 1 - far, 1.0)
