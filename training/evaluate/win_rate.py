"""How often one model's answers are preferred to another's.

Every answer of one model to a prompt meets every answer of the other to the same prompt; a tie counts half. The rate
is the mean over prompts, and its interval comes from resampling prompts (`engine.statistics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval

Utilities = Mapping[str, Sequence[float]]


def by_prompt(ours: Utilities, theirs: Utilities) -> dict[str, float]:
    """For each prompt, the share of pairs that ours win, ties half.

    Args:
        ours, theirs: prompt -> utility of each answer to it. Both need the same prompts.

    Raises:
        UserError: the prompts differ.
    """
    if set(ours) != set(theirs):
        only = sorted(set(ours) ^ set(theirs))
        raise UserError(f"{len(only)} prompts were answered by one of two models only, such as {only[0]}.")
    return {prompt: float(wins(np.array(ours[prompt]), np.array(theirs[prompt])).mean()) for prompt in sorted(ours)}


def wins(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where ours is higher, 0.5 where both are equal, 0 elsewhere; shape (len(ours), len(theirs))."""
    return (np.sign(ours[:, None] - theirs[None, :]) + 1) / 2


def against(ours: Utilities, theirs: Utilities, *seed: str | int) -> Interval:
    """The win rate of ours against theirs with its 95 % interval."""
    rates = by_prompt(ours, theirs)
    return bootstrap.mean(list(rates.values()), list(rates), "win rate", *seed)
