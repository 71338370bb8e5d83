"""How far annotators agree: Krippendorff's alpha for ordinal data and Kendall's W, with bootstrap intervals.

A unit is one answer to one prompt; its values are the mid-ranks the annotators gave it. Prompts, not answers, are
resampled: the ranks within a prompt are not independent of each other.

Legend: B prompts, U units, V distinct values, R rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine import seeds
from labeling.utilities.bradley_terry import Floats, Ints

DRAWS = 1_000


@dataclass(frozen=True)
class Agreement:
    """A coefficient and its 95 % percentile interval over resampled prompts; NaN where it is not defined."""

    value: float
    low: float
    high: float
    prompts: int

    def as_json(self) -> dict[str, float | int | None]:
        return {
            name: None if isinstance(v, float) and np.isnan(v) else (round(v, 6) if isinstance(v, float) else v)
            for name, v in (("value", self.value), ("low", self.low), ("high", self.high), ("prompts", self.prompts))
        }


def mid_ranks(ranks: Sequence[int | None], unranked_below: bool = True) -> list[float]:
    """Ranks 1..K with ties at their mean, so that [1, 1, 2] and [1, 1, 3] are the same judgement.

    Answers without a rank share the last place, or are NaN.
    """
    last = max((r for r in ranks if r is not None), default=0) + 1
    filled = [last if r is None and unranked_below else r for r in ranks]
    known = [r for r in filled if r is not None]
    mid = {r: sum(other < r for other in known) + (known.count(r) + 1) / 2 for r in set(known)}
    return [float("nan") if r is None else mid[r] for r in filled]


def krippendorff_alpha(unit_N: ArrayLike, value_N: ArrayLike, block_N: ArrayLike, draws: int = DRAWS) -> Agreement:
    """Krippendorff's alpha with the ordinal metric (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").

    Args:
        unit_N: the unit each value was given to.
        value_N: the value; NaN is missing.
        block_N: the prompt of the unit.
        draws: of the bootstrap.

    1 is perfect agreement, 0 what chance gives, below 0 systematic disagreement.
    """
    unit, value, block = np.asarray(unit_N), np.asarray(value_N, np.float64), np.asarray(block_N)
    keep = ~np.isnan(value)
    unit, value, block = unit[keep], value[keep], block[keep]
    values, code = np.unique(value, return_inverse=True)
    blocks, block_at = np.unique(block, return_inverse=True)
    units, unit_at, size_U = np.unique(unit, return_inverse=True, return_counts=True)
    v = len(values)
    count_UV = np.zeros((len(units), v))
    np.add.at(count_UV, (unit_at, code), 1)
    block_U = np.zeros(len(units), np.int64)
    block_U[unit_at] = block_at
    paired = size_U > 1
    # Coincidences of a unit: pairs of its values from different annotators, each weighing 1 / (m - 1).
    weight_U = np.where(paired, 1 / np.maximum(size_U - 1, 1), 0.0)
    pairs_BVV = np.zeros((len(blocks), v, v))
    for c in range(v):
        row_UV = count_UV[:, c : c + 1] * count_UV * weight_U[:, None]
        row_UV[:, c] -= count_UV[:, c] * weight_U
        np.add.at(pairs_BVV[:, c], block_U, row_UV)
    used_B = pairs_BVV.sum(axis=(1, 2)) > 0
    flat_BQ = pairs_BVV[used_B].reshape(-1, v * v)
    point = _alpha(flat_BQ.sum(axis=0, keepdims=True).reshape(-1, v, v))
    low, high = _interval(flat_BQ, lambda total: _alpha(total.reshape(-1, v, v)), draws)
    return Agreement(float(point[0]), low, high, int(used_B.sum()))


def _alpha(coincidence_XVV: Floats) -> Floats:
    n_XV = coincidence_XVV.sum(axis=2)
    total_X = n_XV.sum(axis=1)
    # ordinal metric: (n_c / 2 + everything between + n_k / 2) squared
    middle_XV = np.cumsum(n_XV, axis=1) - n_XV / 2
    distance_XVV = (middle_XV[:, :, None] - middle_XV[:, None, :]) ** 2
    observed_X = (coincidence_XVV * distance_XVV).sum(axis=(1, 2))
    expected_X = (n_XV[:, :, None] * n_XV[:, None, :] * distance_XVV).sum(axis=(1, 2)) / np.maximum(total_X - 1, 1)
    return np.where(expected_X > 0, 1 - observed_X / np.where(expected_X > 0, expected_X, 1), np.nan)


def kendall_w(ranks_RK: ArrayLike) -> float:
    """Kendall's coefficient of concordance with the correction for ties (Kendall and Gibbons 1990, eq. 6.3).

    Args:
        ranks_RK: mid-ranks of the same K answers by R annotators.

    1 is complete agreement, 0 none at all. NaN with fewer than two annotators or answers, or if all are tied.
    """
    ranks = np.asarray(ranks_RK, np.float64)
    judges, items = ranks.shape
    if judges < 2 or items < 2:
        return float("nan")
    spread = ((ranks.sum(axis=0) - judges * (items + 1) / 2) ** 2).sum()
    ties = sum(float((c**3 - c).sum()) for c in (np.unique(row, return_counts=True)[1] for row in ranks))
    most = judges**2 * (items**3 - items) - judges * ties
    return float(12 * spread / most) if most > 0 else float("nan")


def mean_kendall_w(by_prompt: Sequence[ArrayLike], draws: int = DRAWS) -> Agreement:
    """The mean of W over prompts, each with its own answers and annotators."""
    w = np.array([kendall_w(ranks) for ranks in by_prompt], np.float64)
    w = w[~np.isnan(w)]
    if not len(w):
        return Agreement(float("nan"), float("nan"), float("nan"), 0)
    low, high = _interval(
        np.stack([w, np.ones_like(w)], axis=1), lambda total: total[:, 0] / np.maximum(total[:, 1], 1e-12), draws
    )
    return Agreement(float(w.mean()), low, high, len(w))


def _interval(block_BQ: Floats, statistic: Callable[[Floats], Floats], draws: int) -> tuple[float, float]:
    """95 % percentile interval of a statistic of sums over blocks, the blocks resampled with replacement."""
    blocks = len(block_BQ)
    if blocks < 2:
        return float("nan"), float("nan")
    rng = seeds.generator("bootstrap", blocks, draws)
    values: list[Floats] = []
    for start in range(0, draws, 200):
        picks: Ints = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=min(200, draws - start))
        values.append(statistic(picks.astype(np.float64) @ block_BQ))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
