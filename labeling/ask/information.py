"""What judgements of pairs are expected to teach, and which to ask for.

What a judgement of a pair is expected to teach is the mutual information between its outcome and the utilities
(Houlsby, Huszar, Ghahramani and Lengyel 2011, "Bayesian active learning for classification and preference learning",
eq. 2): high where the model is unsure *and* the annotator would not be. The uncertainty is the disagreement of a reward
ensemble, or the posterior of the ranking model. Pairs are picked one after another, each pick shrinking the
uncertainty it is expected to settle, so that a batch does not ask one thing twice.

Legend: P pairs, N nodes of the quadrature, Q dimensions of the uncertainty.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from labeling.utilities.bradley_terry import Floats, Ints

# The expectation over a standard normal; an even number of nodes, so that none sits on the peak of the entropy.
_NODES, _MASSES = np.polynomial.hermite_e.hermegauss(40)
_WEIGHTS = _MASSES / _MASSES.sum()


def information(mean_P: Floats, sd_P: Floats) -> Floats:
    """Expected information of one judgement in nats, when the log-odds of a pair are normal; in [0, log 2]."""
    p_PN = _sigmoid(mean_P[:, None] + sd_P[:, None] * _NODES)
    return np.clip(_entropy(p_PN @ _WEIGHTS) - _entropy(p_PN) @ _WEIGHTS, 0, None)


@dataclass(frozen=True)
class Pick:
    """A pair to show, and the information expected of it at the moment when it was picked (nats)."""

    pair: int
    expected: float


def choose(mean_P: Floats, factor_PQ: Floats, count: int, *, group_P: Ints | None = None) -> list[Pick]:
    """Pick pairs by expected information, one after another.

    Args:
        mean_P: log-odds that the first of the pair is preferred.
        factor_PQ: their uncertainty: the log-odds are `mean + factor @ xi` with `xi` standard normal. From a posterior
            covariance `C = L L'` over parameters, `design @ L`; from E members, their deviations over sqrt(E - 1).
        count: how many pairs.
        group_P: the prompt of each pair; at most one pair of each is picked.
    """
    group_P = np.arange(len(mean_P)) if group_P is None else group_P
    count = min(count, len(np.unique(group_P)))
    asked: set[int] = set()
    picks: list[Pick] = []
    left_QQ = np.eye(factor_PQ.shape[1])  # covariance of xi, as picks shrink it

    def variance(pair: int) -> float:
        return max(float(factor_PQ[pair] @ left_QQ @ factor_PQ[pair]), 0.0)

    def expected(pair: int) -> float:
        return float(information(mean_P[[pair]], np.sqrt([variance(pair)]))[0])

    # A pick only ever lowers what the others are expected to teach, so a value from before is a bound from above: look
    # again at the highest alone until it is fresh (Minoux 1978, lazy greedy).
    first_P = information(mean_P, np.linalg.norm(factor_PQ, axis=1))
    queue = [(-value, pair, 0) for pair, value in enumerate(first_P.tolist())]
    heapq.heapify(queue)
    while len(picks) < count:
        value, pair, known_at = heapq.heappop(queue)
        if int(group_P[pair]) in asked:
            continue
        if known_at < len(picks):
            heapq.heappush(queue, (-expected(pair), pair, len(picks)))
            continue
        asked.add(int(group_P[pair]))
        picks.append(Pick(pair, -value))
        before = variance(pair)
        p_N = _sigmoid(mean_P[pair] + np.sqrt(before) * _NODES)
        curvature = float((p_N * (1 - p_N)) @ _WEIGHTS)
        along_Q = left_QQ @ factor_PQ[pair]
        left_QQ = left_QQ - curvature / (1 + curvature * before) * np.outer(along_Q, along_Q)
    return picks


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _entropy(p: Floats) -> Floats:
    q = np.clip(p, 1e-300, 1.0)
    r = np.clip(1 - p, 1e-300, 1.0)
    return -(q * np.log(q) + r * np.log(r))
