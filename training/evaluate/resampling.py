"""Resampling prompts for estimates that all models are fitted together for: how often each prompt is drawn.

Shapes: R resamples, X prompts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.seeds import generator
from engine.statistics.bootstrap import Interval


def counts(prompts: int, resamples: int, *seed: str | int) -> NDArray[np.int64]:
    """counts_RX: how often each prompt stands in each resample of as many prompts."""
    return generator(*seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)


def interval(estimate: float, resampled_R: NDArray[np.float64]) -> Interval:
    """An estimate with the 95 % percentile interval of its resamples."""
    low, high = np.quantile(resampled_R, [0.025, 0.975])
    return Interval(float(estimate), float(low), float(high))
