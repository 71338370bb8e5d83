"""Strengths from graded comparisons: not who won, but by how much, in log-odds.

A judge that gives a probability (AlpacaEval's does) says more than a winner: 0.4 and 0.0001 are both losses. With the
log-odds `y` of such judgements the Bradley-Terry model is linear, and what belongs to the prompt can be taken out: an
item meets all its rivals on a prompt with one and the same answer, good or bad,

    y = (u_i + e_iq) - (u_j + e_jq) + noise,   e ~ N(0, tau^2) for each item and prompt q

a mixed model (Henderson 1975, "Best linear unbiased estimation and prediction under a selection model"), fitted by
generalised least squares, its two variances by EM. Intervals are sandwich by prompt: they lean on neither normality nor
the variances being right.

Legend: P judgements, I items, C clusters (prompts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from engine.errors import UserError
from labeling.bradley_terry import Floats, Strengths, require_connected


def log_odds(share_P: ArrayLike, floor: float = 1e-6) -> Floats:
    """Log-odds of shares in [0, 1], those nearer to an end than `floor` taken as that near."""
    share = np.clip(np.asarray(share_P, np.float64), floor, 1 - floor)
    return np.log(share / (1 - share))


def fit(
    left_P: ArrayLike,
    right_P: ArrayLike,
    log_odds_P: ArrayLike,
    items: int,
    cluster_P: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    most: int = 100,
) -> Strengths:
    """Utilities from the log-odds that `left` is better, judged on prompts.

    Args:
        left_P, right_P: item numbers in [0, items).
        log_odds_P: finite; see `log_odds`.
        cluster_P: the prompt of each judgement.
        most: EM steps for the variances.

    Raises:
        UserError: a number is not finite, or the comparisons do not join all items.
    """
    left, right = np.asarray(left_P, np.int64), np.asarray(right_P, np.int64)
    y = np.asarray(log_odds_P, np.float64)
    if not len(y) or not np.isfinite(y).all():
        raise UserError("graded comparisons need at least one row and finite log-odds; see `log_odds`.")
    joined = np.zeros((items, items), np.bool_)
    joined[left, right] = joined[right, left] = True
    require_connected(joined, names)
    _, cluster = np.unique(np.asarray(cluster_P), return_inverse=True)
    rows = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
    designs: list[tuple[Floats, Floats]] = []
    for member in rows:
        design = np.zeros((len(member), items))
        design[np.arange(len(member)), left[member]] += 1
        design[np.arange(len(member)), right[member]] -= 1
        designs.append((design, y[member]))
    noise = shared = float(np.var(y)) / 2
    for _ in range(most):
        inverse, utility, meat = _solve(designs, noise, shared, items)
        squares, effects, count = 0.0, 0.0, 0
        for design, seen in designs:
            met = np.flatnonzero(np.abs(design).sum(axis=0))
            z = design[:, met]
            covariance = np.linalg.inv(z.T @ z / noise + np.eye(len(met)) / shared)
            rest = seen - design @ utility
            effect = covariance @ z.T @ rest / noise
            effects += float(effect @ effect + np.trace(covariance))
            squares += float(((rest - z @ effect) ** 2).sum() + np.trace(z @ covariance @ z.T))
            count += len(met)
        before = noise, shared
        noise, shared = max(squares / len(y), 1e-9), max(effects / count, 1e-9)
        if max(abs(noise / before[0] - 1), abs(shared / before[1] - 1)) < 1e-4:
            break
    inverse, utility, meat = _solve(designs, noise, shared, items)
    factor = len(designs) / max(len(designs) - 1, 1)
    return Strengths(utility, factor * inverse @ meat @ inverse, np.zeros(0), None, float("nan"), 0)


def _solve(
    designs: Sequence[tuple[Floats, Floats]], noise: float, shared: float, items: int
) -> tuple[Floats, Floats, Floats]:
    """Generalised least squares: the inverse information, the utilities, and the sum of squared scores of clusters."""
    weighted: list[Floats] = []
    information, right = np.full((items, items), 1.0 / items), np.zeros(items)
    for design, seen in designs:
        weight = np.linalg.inv(noise * np.eye(len(seen)) + shared * design @ design.T) @ design
        weighted.append(weight)
        information += design.T @ weight
        right += weight.T @ seen
    inverse = np.linalg.inv(information)
    utility = inverse @ right
    utility -= utility.mean()
    scores = np.stack([w.T @ (seen - d @ utility) for w, (d, seen) in zip(weighted, designs, strict=True)])
    return inverse, utility, scores.T @ scores
