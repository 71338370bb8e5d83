"""Plackett-Luce with ties: utilities from rankings.

A ranking is built from the top: at each step one answer, or a group of equals, is taken from those still open.
Davidson-Luce (Turner, van Etten, Firth and Kosmidis 2020, "Modelling rankings in R", eq. 5): the group G is taken with
probability proportional to

    delta_|G| * (product of e^u over G) ^ (1 / |G|),   delta_1 = 1

Without ties this is Plackett-Luce; with two answers it is Davidson's Bradley-Terry. What stays open after the last step
(a top-k list) was beaten by everything taken.

Legend: R rankings, K columns (answers of one ranking), S steps, M groups that can be taken, D sizes of group, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from engine.errors import UserError
from labeling.utilities.bradley_terry import Bools, Floats, Ints, Strengths, newton, require_connected

Unranked = Literal["below", "ignored"]
MOST_GROUPS = 20_000


@dataclass(frozen=True)
class Steps:
    """Rankings taken apart into choices.

    Attributes:
        item_SK: item numbers; meaningless where not open.
        open_SK: what could be taken.
        taken_SK: 1/|G| for members of the group that was taken, else 0.
        ranking_S: the ranking each step belongs to.
        size_S: index of |G| in `sizes`.
        sizes: the sizes of group seen, 1 first.
        group_MK: 1/|G| for the members of each group that can be taken.
        group_size_M: index of each group's size in `sizes`.
    """

    item_SK: Ints
    open_SK: Bools
    taken_SK: Floats
    ranking_S: Ints
    size_S: Ints
    sizes: tuple[int, ...]
    group_MK: Floats
    group_size_M: Ints

    def repeat(self, times: int) -> Steps:
        """All steps, this often one after another."""
        return Steps(
            np.tile(self.item_SK, (times, 1)),
            np.tile(self.open_SK, (times, 1)),
            np.tile(self.taken_SK, (times, 1)),
            np.tile(self.ranking_S, times),
            np.tile(self.size_S, times),
            self.sizes,
            self.group_MK,
            self.group_size_M,
        )


def dense_ranks(rank_RK: Ints) -> Ints:
    """Ranks 1, 2, 3, ... without gaps in each row, equal where they were equal; 0 (not ranked) stays 0."""
    order = np.argsort(rank_RK, axis=1, kind="stable")
    ordered = np.take_along_axis(rank_RK, order, axis=1)
    new = np.concatenate([ordered[:, :1] > 0, (np.diff(ordered, axis=1) > 0) & (ordered[:, 1:] > 0)], axis=1)
    dense = np.empty_like(rank_RK)
    np.put_along_axis(dense, order, np.cumsum(new, axis=1) * (ordered > 0), axis=1)
    return dense


def take_apart(
    item_RK: ArrayLike, rank_RK: ArrayLike, unranked: Unranked = "below", sizes: tuple[int, ...] | None = None
) -> Steps:
    """The steps of rankings.

    Args:
        item_RK: item numbers, -1 in unused places.
        rank_RK: 1 is best, equal ranks are ties, 0 is not ranked.
        unranked: answers without a rank were `below` all that have one, or are to be `ignored`.
        sizes: the sizes of group that can be taken, at least those that were; these if not given.

    Raises:
        UserError: shapes differ, or ties are too large to sum over their groups.
    """
    item, rank = np.asarray(item_RK, np.int64), np.asarray(rank_RK, np.int64)
    if item.shape != rank.shape or item.ndim != 2:
        raise UserError(f"items {item.shape} and ranks {rank.shape} must be two tables of one shape.")
    if (rank < 0).any():
        raise UserError("a rank is 1 or more; 0 is not ranked.")
    used = item >= 0
    dense = dense_ranks(np.where(used, rank, 0))
    if unranked == "ignored":
        used &= dense > 0
    level = np.where(used & (dense == 0), item.shape[1] + 1, dense)
    parts: list[tuple[Ints, Bools, Bools]] = []
    for g in range(1, int(dense.max(initial=0)) + 1):
        taken, opened = used & (level == g), used & (level >= g)
        rows = np.flatnonzero(taken.any(axis=1) & (opened.sum(axis=1) > 1))
        parts.append((rows, opened[rows], taken[rows]))
    rows = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0, np.int64)
    opened = np.concatenate([p[1] for p in parts]) if parts else np.zeros((0, item.shape[1]), np.bool_)
    taken = np.concatenate([p[2] for p in parts]) if parts else np.zeros((0, item.shape[1]), np.bool_)
    count = taken.sum(axis=1)
    sizes = sizes or tuple(sorted({1, *count.tolist()}))
    columns = item.shape[1]
    if (total := sum(comb(columns, size) for size in sizes)) > MOST_GROUPS:
        raise UserError(
            f"rankings of {columns} answers with ties of up to {sizes[-1]} have {total:,} possible groups, "
            f"more than {MOST_GROUPS:,}. Rank fewer answers at a time, or leave the tied ones without a rank."
        )
    groups = [(index, members) for index, size in enumerate(sizes) for members in combinations(range(columns), size)]
    group = np.zeros((len(groups), columns))
    for row, (_, members) in enumerate(groups):
        group[row, list(members)] = 1 / len(members)
    return Steps(
        np.where(opened, item[rows], 0),
        opened,
        taken / np.maximum(count, 1)[:, None],
        rows,
        np.searchsorted(np.array(sizes), count),
        sizes,
        group,
        np.array([index for index, _ in groups], np.int64),
    )


@dataclass(frozen=True)
class Moments:
    """Log-likelihood of each step and its derivatives.

    Attributes:
        loglik_S: log-probability of the group that was taken.
        residual_SK: gradient in the utilities of the open answers: taken minus expected.
        covariance_SKK: minus the Hessian in them.
        size_SD: probability of each size of group.
        cross_SKD: covariance of membership and size.
    """

    loglik_S: Floats
    residual_SK: Floats
    covariance_SKK: Floats
    size_SD: Floats
    cross_SKD: Floats


def moments(steps: Steps, utility_SK: Floats, log_delta_D: Floats) -> Moments:
    """Evaluate every step at these utilities (of the answers in their columns) and tie parameters (`[0]` is 0)."""
    group, columns = steps.group_MK, utility_SK.shape[1]
    utility_SK = np.where(steps.open_SK, utility_SK, 0.0)
    if len(steps.sizes) == 1:  # no ties: the groups are the answers
        logit_SM = np.where(steps.open_SK, utility_SK, -np.inf)
    else:
        logit_SM = utility_SK @ group.T + log_delta_D[steps.group_size_M]
        logit_SM[(~steps.open_SK).astype(np.float64) @ (group.T > 0) > 0] = -np.inf
    top_S1 = logit_SM.max(axis=1, keepdims=True)
    p_SM = np.exp(logit_SM - top_S1)
    total_S1 = p_SM.sum(axis=1, keepdims=True)
    p_SM /= total_S1
    chosen_S = (utility_SK * steps.taken_SK).sum(axis=1) + log_delta_D[steps.size_S]
    loglik_S = chosen_S - top_S1[:, 0] - np.log(total_S1[:, 0])
    if len(steps.sizes) == 1:
        covariance = -p_SM[:, :, None] * p_SM[:, None, :]
        covariance[:, range(columns), range(columns)] += p_SM
        nothing = np.zeros((*utility_SK.shape, 1))
        return Moments(loglik_S, steps.taken_SK - p_SM, covariance, np.ones((len(p_SM), 1)), nothing)
    mean_SK = p_SM @ group
    square = (group[:, :, None] * group[:, None, :]).reshape(len(group), -1)
    covariance = (p_SM @ square).reshape(-1, columns, columns) - mean_SK[:, :, None] * mean_SK[:, None, :]
    is_size_MD = np.eye(len(steps.sizes))[steps.group_size_M]
    size_SD = p_SM @ is_size_MD
    both = (group[:, :, None] * is_size_MD[:, None, :]).reshape(len(group), -1)
    cross = (p_SM @ both).reshape(-1, columns, len(steps.sizes)) - mean_SK[:, :, None] * size_SD[:, None, :]
    return Moments(loglik_S, steps.taken_SK - mean_SK, covariance, size_SD, cross)


def fit(
    item_RK: ArrayLike,
    rank_RK: ArrayLike,
    items: int,
    *,
    weight_R: ArrayLike | None = None,
    unranked: Unranked = "below",
    prior: float = 0.0,
    names: Sequence[str] | None = None,
) -> Strengths:
    """Maximum-likelihood utilities of `items` items from rankings with ties and top-k lists.

    Args:
        item_RK: item numbers in [0, items), -1 in unused places.
        rank_RK: 1 is best, equal ranks are ties, 0 is not ranked.
        weight_R: how often each ranking counts; 1 if not given.
        unranked: see `take_apart`.
        prior: precision of a normal prior on the utilities; 0 is maximum likelihood.
        names: of the items, for messages.

    Raises:
        UserError: as `take_apart`; an item out of range; or (without a prior) a utility has no finite estimate.
    """
    steps = take_apart(item_RK, rank_RK, unranked)
    if not len(steps.ranking_S):
        raise UserError("no ranking puts one answer above another: there is nothing to fit.")
    if steps.item_SK.max() >= items:
        raise UserError(f"a ranking names item {int(steps.item_SK.max())}; there are {items}.")
    weight_S = np.ones(len(steps.ranking_S)) if weight_R is None else np.asarray(weight_R, np.float64)[steps.ranking_S]
    if prior == 0:
        require_connected(_beats(steps, items), names)
    columns, extra = steps.item_SK.shape[1], len(steps.sizes) - 1
    pair_SKK = steps.item_SK[:, :, None] * items + steps.item_SK[:, None, :]

    def objective(x: Floats) -> tuple[float, Floats, Floats]:
        log_delta = np.concatenate([[0.0], x[items:]])
        m = moments(steps, x[steps.item_SK], log_delta)
        gradient, hessian = np.zeros(items + extra), np.zeros((items + extra, items + extra))
        gradient[:items] = np.bincount(steps.item_SK.ravel(), (weight_S[:, None] * m.residual_SK).ravel(), items)
        flat = np.bincount(pair_SKK.ravel(), (weight_S[:, None, None] * m.covariance_SKK).ravel(), items * items)
        hessian[:items, :items] = -flat.reshape(items, items)
        if extra:
            seen_SD = np.eye(extra + 1)[steps.size_S]
            gradient[items:] = (weight_S @ (seen_SD - m.size_SD))[1:]
            spread = np.diag(weight_S @ m.size_SD) - (m.size_SD * weight_S[:, None]).T @ m.size_SD
            hessian[items:, items:] = -spread[1:, 1:]
            for d in range(1, extra + 1):
                cross = np.bincount(steps.item_SK.ravel(), (weight_S[:, None] * m.cross_SKD[:, :, d]).ravel(), items)
                hessian[:items, items + d - 1] = hessian[items + d - 1, :items] = -cross
        gradient[:items] -= prior * x[:items]
        hessian[range(items), range(items)] -= prior
        hessian[:items, :items] -= 1.0 / items  # fixes the sum of the utilities, which the likelihood leaves free
        value = float(weight_S @ m.loglik_S) - 0.5 * prior * float(x[:items] @ x[:items])
        return value, gradient, hessian

    assert columns
    x, hessian, taken = newton(objective, np.zeros(items + extra))
    covariance = np.linalg.inv(-hessian)[:items, :items] - 1.0 / (1.0 + prior) / items
    loglik = objective(x)[0] + 0.5 * prior * float(x[:items] @ x[:items])
    return Strengths(x[:items] - x[:items].mean(), covariance, x[items:], None, loglik, taken)


def _beats(steps: Steps, items: int) -> Bools:
    """Who was taken before, or together with, whom."""
    taken, opened = steps.taken_SK > 0, steps.open_SK
    beats = np.zeros((items, items), np.bool_)
    for k in range(steps.item_SK.shape[1]):
        for j in range(steps.item_SK.shape[1]):
            if k != j:
                rows = taken[:, k] & opened[:, j]
                beats[steps.item_SK[rows, k], steps.item_SK[rows, j]] = True
    return beats
