"""Over-optimisation: a policy that scores ever higher with its reward model, and is ever worse (Gao, Schulman and
Hilton 2022, "Scaling laws for reward model overoptimization").

What is trained on is the *proxy*: the reward model. What counts is the *gold* score: people, or a rule, or a reward
model of another round, on answers to held-out prompts. Against the distance d = sqrt(KL(policy || reference)) a proxy
goes on rising where gold turns over; Gao et al. (eq. 1) find

    best-of-n      gold(d) = d (alpha - beta d)          with its peak at d = alpha / (2 beta)
    RL             gold(d) = d (alpha - beta log d)      with its peak at d = exp(alpha / beta - 1)

Two signals stop a run in time. The heads of an ensemble agree where they were trained and part where they were not, so
their *disagreement* on the policy's answers, relative to what it was on the reference's, tells how far the policy has
left what the labels cover (Coste et al. 2023, "Reward model ensembles help mitigate overoptimization"). It is a coarse
signal, blind to errors that all heads share, and only used where nothing better is there: a *held-out* score, which has
to fall by more than its error. The checkpoint to keep is the best by the held-out score, not the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.errors import UserError
from training.rl import kl


@dataclass(frozen=True)
class Point:
    """A policy as it was at one step.

    Attributes:
        kl: to the reference, in nats an answer. An estimate may be slightly negative.
        proxy: mean score of its answers by what it is trained on.
        disagreement: mean standard deviation of an ensemble's heads on its answers; None for a single model.
        gold: mean held-out score; None where it was not measured at this step.
        gold_error: standard error of `gold`.
    """

    step: int
    kl: float
    proxy: float
    disagreement: float | None = None
    gold: float | None = None
    gold_error: float = 0.0

    @property
    def distance(self) -> float:
        """sqrt(KL), 0 where the estimate is negative."""
        return math.sqrt(max(self.kl, 0.0))


def held_out(scores: ArrayLike, prompts: Sequence[str]) -> tuple[float, float]:
    """(gold, gold_error) from the held-out scores of answers: the mean over prompts of each prompt's mean, and the
    standard error over prompts."""
    names, inverse = np.unique(np.asarray(prompts, dtype=str), return_inverse=True)
    means = np.bincount(inverse, weights=np.asarray(scores, np.float64)) / np.bincount(inverse)
    error = float(means.std(ddof=1) / math.sqrt(len(names))) if len(names) > 1 else 0.0
    return float(means.mean()), error


def disagreement_reason(points: Sequence[Point], most: float | None) -> str | None:
    """Set when the last point's ensemble disagrees more than `most` times as much as the first one's did."""
    measured = [p for p in points if p.disagreement is not None]
    if most is None or len(measured) < 2:
        return None
    first, last = measured[0].disagreement or 0.0, measured[-1].disagreement or 0.0
    if last <= most * max(first, 1e-12):
        return None
    return (
        f"the heads of the reward model disagree {last / max(first, 1e-12):.1f} times as much about these answers as "
        f"they did at the start (limit {most:g}): the policy has left what the labels cover."
    )


def held_out_reason(points: Sequence[Point], patience: int, z: float) -> str | None:
    """Set when the last `patience` held-out scores are all below the best by more than `z` standard errors of the
    difference."""
    measured = [p for p in points if p.gold is not None]
    if len(measured) <= patience:
        return None
    top = max(measured, key=lambda p: p.gold or 0.0)
    recent = measured[-patience:]
    if top in recent or any(
        (top.gold or 0.0) - (p.gold or 0.0) <= z * math.hypot(top.gold_error, p.gold_error) for p in recent
    ):
        return None
    return (
        f"the held-out score has been below its best ({top.gold:.4g} at step {top.step}) for {patience} measurements, "
        f"now {recent[-1].gold:.4g}, while the reward went from {top.proxy:.4g} to {recent[-1].proxy:.4g}: the policy "
        "is learning the reward model's mistakes."
    )


def best(points: Sequence[Point], max_disagreement: float | None = None) -> Point:
    """The point with the best held-out score; without any, the last one within the limit of disagreement.

    Raises:
        UserError: there is no point.
    """
    if not points:
        raise UserError("no policy was measured, so none can be chosen.")
    measured = [p for p in points if p.gold is not None]
    if measured:
        return max(measured, key=lambda p: (p.gold or 0.0, -p.step))
    within = [p for n, p in enumerate(points) if disagreement_reason(points[: n + 1], max_disagreement) is None]
    return within[-1]


def best_of_at_kl(kl_spent: float) -> int:
    """The most answers of which choosing the best moves a policy no further than `kl_spent` nats: best-of-n at equal KL."""
    n = 1
    while n < 1 << 20 and kl.best_of_n(n + max(1, n // 64)) <= kl_spent:
        n += max(1, n // 64)
    return n
