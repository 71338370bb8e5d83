"""Strengths from graded comparisons: not who won, but by how much, in log-odds.

A judge that gives a probability (AlpacaEval's does) says more than a winner: 0.4 and 0.0001 are both losses. With the
log-odds `y` of such judgements the Bradley-Terry model is linear, and what belongs to the prompt can be taken out: an
item meets all its rivals on a prompt with one and the same answer, good or bad,

    y = (u_i + e_iq) - (u_j + e_jq) + noise,   e ~ N(0, tau^2) for each item and prompt q

a mixed model (Henderson 1975, "Best linear unbiased estimation and prediction under a selection model"), fitted by
generalised least squares, its two variances by EM. Intervals are sandwich by prompt: they lean on neither normality nor
the variances being right.

Legend: P judgements, I items, C clusters (prompts), M judgements of the largest cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import UserError
from labeling.utilities.bradley_terry import Bools, Floats, Ints, Strengths, require_connected


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
    clusters = _Clusters.of(left, right, y, items, np.asarray(cluster_P))
    noise = shared = float(np.var(y)) / 2
    for _ in range(most):
        step = _solve(clusters, noise, shared)
        before = noise, shared
        noise, shared = max(step.noise, 1e-9), max(step.shared, 1e-9)
        if max(abs(noise / before[0] - 1), abs(shared / before[1] - 1)) < 1e-4:
            break
    found = _solve(clusters, noise, shared)
    count = len(clusters.y_CM)
    covariance = count / max(count - 1, 1) * found.inverse @ found.meat @ found.inverse
    return Strengths(found.utility_I, covariance, np.zeros(0), None, float("nan"), 0)


@dataclass(frozen=True)
class _Clusters:
    """Judgements by prompt, padded with rows of zeros, which tell nothing."""

    design_CMI: Floats
    y_CM: Floats
    used_CM: Bools
    met: int  # pairs of a prompt and an item judged on it

    @staticmethod
    def of(left_P: Ints, right_P: Ints, y_P: Floats, items: int, cluster_P: NDArray[Any]) -> _Clusters:
        _, cluster, size = np.unique(cluster_P, return_inverse=True, return_counts=True)
        order = np.argsort(cluster, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
        design = np.zeros((len(size), int(size.max()), items))
        np.add.at(design, (cluster, place, left_P), 1.0)
        np.add.at(design, (cluster, place, right_P), -1.0)
        y, used = np.zeros(design.shape[:2]), np.zeros(design.shape[:2], np.bool_)
        y[cluster, place], used[cluster, place] = y_P, True
        return _Clusters(design, y, used, int((np.abs(design).sum(axis=1) > 0).sum()))


@dataclass(frozen=True)
class _Step:
    """The solution at two variances, and the next two. `meat` is the sum of squared scores of clusters."""

    utility_I: Floats
    inverse: Floats
    meat: Floats
    noise: float
    shared: float


def _solve(clusters: _Clusters, noise: float, shared: float) -> _Step:
    """Generalised least squares, and one EM step of the variances, from the inverse covariances of the judgements."""
    design, y = clusters.design_CMI, clusters.y_CM
    items, width = design.shape[2], design.shape[1]
    precision = np.linalg.inv(noise * np.eye(width) + shared * design @ design.transpose(0, 2, 1))
    weight = precision @ design
    inverse = np.linalg.inv(np.einsum("cmi,cmj->ij", design, weight, optimize=True) + 1.0 / items)
    utility = inverse @ np.einsum("cmi,cm->i", weight, y)
    utility -= utility.mean()
    rest = np.where(clusters.used_CM, y - design @ utility, 0.0)
    score_CI = np.einsum("cmi,cm->ci", weight, rest)
    trace = float(np.where(clusters.used_CM, np.diagonal(precision, axis1=1, axis2=2), 0.0).sum())
    squares = noise**2 * float((np.einsum("cmn,cn->cm", precision, rest) ** 2).sum()) - noise**2 * trace
    effects = shared**2 * float((score_CI**2).sum()) - shared**2 * float((design * weight).sum())
    return _Step(
        utility,
        inverse,
        score_CI.T @ score_CI,
        noise + squares / clusters.used_CM.sum(),
        shared + effects / clusters.met,
    )
