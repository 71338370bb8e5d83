"""Bradley-Terry with ties: strengths from pairwise comparisons.

The log-odds that `i` beats `j` are the difference of their utilities. Ties follow Davidson or Rao and Kupper:

    Davidson (1970, eq. 2.4)      P(i > j) : P(tie) : P(j > i)  =  e^(d/2) : nu : e^(-d/2),  d = u_i - u_j
    Rao and Kupper (1967, eq. 3)  P(i > j) = s(d - c),  P(j > i) = s(-d - c),  tie in between,  c = log(kappa) > 0

An advantage of what is shown first shifts `d` (Davidson and Beaver 1977). All of it is one concave log-likelihood,
maximised by Newton steps on tallies, so its cost grows with the number of distinct pairs, not of judgements.

Legend: P pairs (judgements), T tallies (distinct pairs), I items, Q parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import UserError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Ties = Literal["davidson", "rao_kupper", "half"]


@dataclass(frozen=True)
class Strengths:
    """Utilities of items in log-odds, centred on zero, and how well they are known.

    Attributes:
        utility_I: the maximum of the (penalised) likelihood; sums to zero.
        covariance_II: of the utilities; sandwich form where clusters were given.
        tie: Davidson's `log nu` (Plackett-Luce: `log delta_t` for each size t > 1 seen), or Rao and Kupper's `c`.
        first: advantage of the item shown first in log-odds, and its standard error; None where not asked for.
        loglik: log-likelihood at the maximum, without the penalty.
        steps: Newton steps taken.
    """

    utility_I: Floats
    covariance_II: Floats
    tie: Floats
    first: tuple[float, float] | None
    loglik: float
    steps: int

    @property
    def se_I(self) -> Floats:
        return np.sqrt(np.clip(np.diag(self.covariance_II), 0, None))

    def interval(self, level: float = 0.95) -> Floats:
        """Wald intervals of the utilities, (I, 2)."""
        z = NormalDist().inv_cdf(0.5 + level / 2)
        return np.stack([self.utility_I - z * self.se_I, self.utility_I + z * self.se_I], axis=1)

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """`u_i - u_j` and its standard error."""
        c = self.covariance_II
        return float(self.utility_I[i] - self.utility_I[j]), float(np.sqrt(max(c[i, i] + c[j, j] - 2 * c[i, j], 0.0)))


def fit(
    left_P: ArrayLike,
    right_P: ArrayLike,
    score_P: ArrayLike,
    items: int,
    *,
    ties: Ties = "davidson",
    weight_P: ArrayLike | None = None,
    shown_first_P: ArrayLike | None = None,
    cluster_P: ArrayLike | None = None,
    prior: float = 0.0,
    names: Sequence[str] | None = None,
) -> Strengths:
    """Maximum-likelihood strengths.

    Args:
        left_P, right_P: item numbers in [0, items).
        score_P: 1 left won, 0 right won, 0.5 a tie. With `ties="half"` any share in [0, 1] (a quasi-likelihood:
            half a win for each side of a tie).
        ties: how ties are modelled. Without a tie in the data, all three are plain Bradley-Terry.
        weight_P: how often each judgement counts; 1 if not given.
        shown_first_P: +1 the left one was shown first, -1 the right one, 0 unknown. Adds the advantage of being first.
        cluster_P: judgements that hang together (the prompt, the annotator). Turns on sandwich intervals, which stay
            right when judgements within a cluster are correlated or shares are not counts.
        prior: precision of a normal prior on the utilities; 0 is maximum likelihood.
        names: of the items, for messages.

    Raises:
        UserError: a number is out of range, or (without a prior) the comparisons leave a strength unbounded.
    """
    left, right = np.asarray(left_P, np.int64), np.asarray(right_P, np.int64)
    score = np.asarray(score_P, np.float64)
    weight = np.ones(len(score)) if weight_P is None else np.asarray(weight_P, np.float64)
    order = np.zeros(len(score), np.int64) if shown_first_P is None else np.asarray(shown_first_P, np.int64)
    _check(left, right, score, weight, items, ties)

    # Tallies: one line for each (pair, order), with the smaller item on the left.
    swap = left > right
    low, high = np.where(swap, right, left), np.where(swap, left, right)
    score, order = np.where(swap, 1 - score, score), np.where(swap, -order, order)
    key_P = (low * items + high) * 3 + order + 1
    keys_T, of_P = np.unique(key_P, return_inverse=True)
    low_T, high_T = keys_T // 3 // items, keys_T // 3 % items
    order_T = (keys_T % 3 - 1).astype(np.float64)
    if ties == "half":
        share = np.stack([score, 1 - score, np.zeros_like(score)], axis=1)
    else:
        share = np.stack([score == 1, score == 0, score == 0.5], axis=1).astype(np.float64)
    count_T3 = np.stack([np.bincount(of_P, weight * share[:, k], len(keys_T)) for k in range(3)], axis=1)

    if prior == 0:
        beats = np.zeros((items, items), np.bool_)
        beats[low_T, high_T] |= (count_T3[:, 0] + count_T3[:, 2]) > 0
        beats[high_T, low_T] |= (count_T3[:, 1] + count_T3[:, 2]) > 0
        require_connected(beats, names)

    tied = bool(count_T3[:, 2].any())
    ordered = shown_first_P is not None and bool(order_T.any())
    # Columns of the design: the utilities, the tie parameter, the advantage of being first.
    size = items + tied + ordered
    design_TQ = np.zeros((len(keys_T), size))  # of d; the tie parameter is not part of d
    design_TQ[np.arange(len(keys_T)), low_T] = 1
    design_TQ[np.arange(len(keys_T)), high_T] -= 1
    if ordered:
        design_TQ[:, -1] = order_T
    at = items if tied else None
    rao_kupper = tied and ties == "rao_kupper"
    centre = np.zeros((size, size))
    centre[:items, :items] = 1.0 / items  # fixes the sum of the utilities, which the likelihood leaves free

    def objective(x: Floats) -> tuple[float, Floats, Floats]:
        d_T = design_TQ @ x
        outcome = _rao_kupper if rao_kupper else _davidson
        log_T3, first_T32, second_T322 = outcome(d_T, x[at] if at is not None else None)
        value = float((count_T3 * log_T3).sum()) - 0.5 * prior * float(x[:items] @ x[:items])
        g_T2 = np.einsum("tk,tkq->tq", count_T3, first_T32)
        h_T22 = np.einsum("tk,tkqr->tqr", count_T3, second_T322)
        gradient = design_TQ.T @ g_T2[:, 0]
        hessian = (design_TQ.T * h_T22[:, 0, 0]) @ design_TQ
        if at is not None:
            gradient[at] += g_T2[:, 1].sum()
            cross = design_TQ.T @ h_T22[:, 0, 1]
            hessian[at] += cross
            hessian[:, at] += cross
            hessian[at, at] += h_T22[:, 1, 1].sum()
        gradient[:items] -= prior * x[:items]
        hessian[range(items), range(items)] -= prior
        return value, gradient, hessian - centre

    start = np.zeros(size)
    if at is not None:
        start[at] = 0.5
    x, hessian, steps = newton(objective, start, positive=at if rao_kupper else None)
    inverse = np.linalg.inv(-hessian)
    covariance = inverse - _free(items, size, prior)
    if cluster_P is not None:
        outcome = _rao_kupper if rao_kupper else _davidson
        _, first_T32, _ = outcome(design_TQ @ x, x[at] if at is not None else None)
        score_P2 = np.einsum("pk,pkq->pq", share * weight[:, None], first_T32[of_P])
        score_PQ = design_TQ[of_P] * score_P2[:, :1]
        if at is not None:
            score_PQ[:, at] += score_P2[:, 1]
        covariance = _sandwich(inverse, score_PQ, np.asarray(cluster_P))
    value = objective(x)[0] + 0.5 * prior * float(x[:items] @ x[:items])
    advantage = (float(x[-1]), float(np.sqrt(covariance[-1, -1]))) if ordered else None
    tie = x[items : items + 1] if tied else np.zeros(0)
    return Strengths(x[:items] - x[:items].mean(), covariance[:items, :items], tie, advantage, value, steps)


def _davidson(d_T: Floats, log_nu: float | None) -> tuple[Floats, Floats, Floats]:
    """Log-probabilities (T, 3) of win, loss, tie, and their derivatives in (d, log nu): (T, 3, 2), (T, 3, 2, 2)."""
    tie = -np.inf if log_nu is None else log_nu
    logit_T3 = np.stack([d_T / 2, -d_T / 2, np.full_like(d_T, tie)], axis=1)
    top = logit_T3.max(axis=1, keepdims=True)
    log_T3 = logit_T3 - top - np.log(np.exp(logit_T3 - top).sum(axis=1, keepdims=True))
    p_T3 = np.exp(log_T3)
    statistic_32 = np.array([[0.5, 0], [-0.5, 0], [0, 1]])
    mean_T2 = p_T3 @ statistic_32
    square_T22 = np.einsum("tk,kq,kr->tqr", p_T3, statistic_32, statistic_32)
    covariance_T22 = square_T22 - mean_T2[:, :, None] * mean_T2[:, None, :]
    log_T3 = np.where(np.isfinite(log_T3), log_T3, 0.0)  # no tie was seen: its column is never counted
    return log_T3, statistic_32 - mean_T2[:, None, :], np.repeat(-covariance_T22[:, None], 3, axis=1)


def _rao_kupper(d_T: Floats, c: float | None) -> tuple[Floats, Floats, Floats]:
    """As `_davidson`, with derivatives in (d, c): a cumulative logit with thresholds -c and c."""
    assert c is not None
    zeros = np.zeros_like(d_T)
    win, loss = _sigmoid(d_T - c), _sigmoid(-d_T - c)
    # tie: s(d + c) - s(d - c) = s(d + c) s(c - d) (1 - e^(-2c)), which does not cancel
    log_tie = _log_sigmoid(d_T + c) + _log_sigmoid(c - d_T) + np.log1p(-np.exp(-2 * c))
    log_T3 = np.stack([_log_sigmoid(d_T - c), _log_sigmoid(-d_T - c), log_tie], axis=1)
    slope, curve = 2 / np.expm1(2 * c), -np.exp(2 * c) * (2 / np.expm1(2 * c)) ** 2
    up, down = _sigmoid(-d_T - c), _sigmoid(d_T - c)  # 1 - s(d + c), 1 - s(c - d)
    first = np.stack(
        [
            np.stack([1 - win, win - 1], 1),
            np.stack([loss - 1, loss - 1], 1),
            np.stack([up - down, up + down + slope], 1),
        ],
        axis=1,
    )
    w, v = -win * (1 - win), -loss * (1 - loss)  # note: v is also the curvature of log s(d + c), w of log s(c - d)
    second = np.stack(
        [
            np.stack([np.stack([w, -w], 1), np.stack([-w, w], 1)], 1),
            np.stack([np.stack([v, v], 1), np.stack([v, v], 1)], 1),
            np.stack([np.stack([v + w, v - w], 1), np.stack([v - w, v + w + curve + zeros], 1)], 1),
        ],
        axis=1,
    )
    return log_T3, first, second


def _sigmoid(x: Floats) -> Floats:
    return np.exp(_log_sigmoid(x))


def _log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0, -x)


def newton(
    objective: Callable[[Floats], tuple[float, Floats, Floats]],
    start: Floats,
    *,
    positive: int | None = None,
    tolerance: float = 1e-10,
    most: int = 100,
) -> tuple[Floats, Floats, int]:
    """Maximise a concave function by Newton steps, halved until it rises.

    Args:
        objective: value, gradient (Q,) and Hessian (Q, Q) at a point; the Hessian is negative definite.
        positive: a coordinate that must stay above zero.

    Returns:
        The maximum, the Hessian there, and the steps taken.
    """
    x = start.copy()
    value, gradient, hessian = objective(x)
    for step in range(1, most + 1):
        move = np.linalg.solve(-hessian, gradient)
        if float(gradient @ move) < tolerance**2 * max(1.0, abs(value)):
            return x, hessian, step
        scale = 1.0
        if positive is not None and move[positive] < 0:
            scale = min(1.0, -0.9 * x[positive] / float(move[positive]))
        for _ in range(40):
            after = objective(x + scale * move)
            if np.isfinite(after[0]) and after[0] >= value - 1e-12 * abs(value):
                break
            scale /= 2
        else:
            return x, hessian, step  # no rise left in floating point
        x = x + scale * move
        value, gradient, hessian = after
        if np.abs(scale * move).max() < tolerance:
            return x, hessian, step
    return x, hessian, most


def require_connected(beats_II: Bools, names: Sequence[str] | None = None) -> None:
    """Finite strengths need every item to be reachable from every other by wins (Ford 1957; Hunter 2004, assumption 1).

    Raises:
        UserError: they are not, naming the items of one side.
    """
    items = len(beats_II)
    for way, graph in (("lose to or are compared with", beats_II), ("beat or are compared with", beats_II.T)):
        seen = np.zeros(items, np.bool_)
        seen[0] = True
        front = seen
        while front.any():
            front = graph[front].any(axis=0) & ~seen
            seen = seen | front
        if not seen.all():
            outside = [str(names[i]) if names else str(i) for i in np.flatnonzero(~seen).tolist()]
            shown = ", ".join(outside[:5]) + (f" and {len(outside) - 5} more" if len(outside) > 5 else "")
            raise UserError(
                f"{items} items are not joined by wins in both directions, so their strengths have no finite estimate: "
                f"no chain of judgements in which {shown} {way} the others. Add comparisons, or give a prior above 0."
            )


def _free(items: int, size: int, prior: float) -> Floats:
    """What the centring term adds to the inverse Hessian along the direction the likelihood leaves free."""
    free = np.zeros((size, size))
    free[:items, :items] = 1.0 / (1.0 + prior) / items
    return free


def _sandwich(inverse_QQ: Floats, score_PQ: Floats, cluster_P: NDArray[np.generic]) -> Floats:
    """Cluster-robust covariance (Liang and Zeger 1986), with the small-sample factor C / (C - 1)."""
    clusters, of_P = np.unique(cluster_P, return_inverse=True)
    total_CQ = np.zeros((len(clusters), score_PQ.shape[1]))
    np.add.at(total_CQ, of_P, score_PQ)
    factor = len(clusters) / max(len(clusters) - 1, 1)
    return factor * inverse_QQ @ (total_CQ.T @ total_CQ) @ inverse_QQ


def _check(left: Ints, right: Ints, score: Floats, weight: Floats, items: int, ties: Ties) -> None:
    if not len(score) or not len(left) == len(right) == len(score) == len(weight):
        raise UserError(
            f"comparisons need columns of one length and at least one row; got {len(left)}, {len(right)}, {len(score)}."
        )
    if min(left.min(), right.min()) < 0 or max(left.max(), right.max()) >= items:
        raise UserError(f"a comparison names an item outside 0..{items - 1}.")
    if (left == right).any():
        raise UserError(f"comparison {int(np.argmax(left == right))} is of an item with itself.")
    if not np.isfinite(weight).all() or weight.min() < 0:
        raise UserError("weights must be finite and not negative.")
    if ties == "half":
        if not ((score >= 0) & (score <= 1)).all():
            raise UserError("with ties='half' a score is a share between 0 and 1.")
    elif not np.isin(score, (0.0, 0.5, 1.0)).all():
        raise UserError(f"with ties='{ties}' a score is 1, 0 or 0.5 (a tie); for shares use ties='half'.")
