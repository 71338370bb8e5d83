"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations


def linear(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at this step (from 0): a linear rise over `warmup` of the steps, then a linear fall."""
    rise = max(int(warmup * steps), 1)
    return min((step + 1) / rise, (steps - step) / max(steps - rise + 1, 1), 1.0)
