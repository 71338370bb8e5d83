"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "constant"]


def linear(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at this step (from 0): a linear rise over `warmup` of the steps, then a linear fall."""
    rise = max(int(warmup * steps), 1)
    return min((step + 1) / rise, (steps - step) / max(steps - rise + 1, 1), 1.0)


def factor(step: int, steps: int, kind: ScheduleName, warmup: int, decay: float, final: float) -> float:
    """The share of the peak learning rate at step [0, steps).

    Warm-up is linear and reaches 1 at step `warmup - 1`. Then

    - `cosine` falls along half a cosine to `final` at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5);
    - `wsd` stays at 1 and falls in a straight line over the last `decay` share of the steps (Hu et al. 2024,
      arXiv:2404.06395, eq. 1);
    - `constant` stays at 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        done = (step - warmup + 1) / max(1, steps - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    falling = max(1, round(decay * steps))
    left = steps - step - 1
    return 1.0 if left >= falling else final + (1 - final) * left / falling
