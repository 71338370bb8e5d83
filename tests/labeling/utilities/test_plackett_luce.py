from __future__ import annotations

from itertools import combinations, permutations

import choix
import numpy as np
import pytest

from engine.errors import UserError
from labeling.utilities import bradley_terry, plackett_luce


def drawn(rng: np.random.Generator, u: np.ndarray, count: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Top-k rankings of all items from the model (Gumbel noise on utilities)."""
    order = np.argsort(-(u + rng.gumbel(size=(count, len(u)))), axis=1)
    rank = np.zeros((count, len(u)), np.int64)
    np.put_along_axis(rank, order[:, :top], np.arange(1, top + 1), axis=1)
    return np.tile(np.arange(len(u)), (count, 1)), rank


def least_error(rng: np.random.Generator, u: np.ndarray, count: int, top: int, draws: int = 1000) -> float:
    """What 1 - r comes to, in expectation and for many lists, for an estimator at the Cramer-Rao bound.

    The bound is the inverse Fisher information, which here is the expected covariance of the choices, averaged over
    drawn lists. Only errors across `u` lower a correlation: 1 - r = (error across u)^2 / 2 |u|^2.
    """
    steps = plackett_luce.take_apart(*drawn(rng, u, draws, top))
    covariance = plackett_luce.moments(steps, u[steps.item_SK], np.zeros(1)).covariance_SKK.sum(axis=0) / draws
    bound = np.linalg.pinv(covariance) / count
    centred = u - u.mean()
    along = [np.ones(len(u)) / np.sqrt(len(u)), centred / np.linalg.norm(centred)]
    across = np.eye(len(u)) - sum(np.outer(e, e) for e in along)
    return float(np.trace(across @ bound @ across) / (2 * centred @ centred))


@pytest.mark.parametrize(("count", "least", "seeds"), [(500, 0.99, 40), (5000, 0.999, 10)])
def test_top_4_lists_of_10_items_recover_the_utilities(count: int, least: float, seeds: int) -> None:
    """Utilities from N(0, 1), the best four of all ten ranked. The mean r over the seeds is .9956 and .9995.

    One draw of utilities may lie below the bar (they are close together in it), and no estimator would do better: the
    shortfall, as a share of the one at the Cramer-Rao bound, averages to one. Its spread is that of a chi-squared of eight
    degrees of freedom, some .6 for unequal eigenvalues.
    """
    found, bound = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        u = rng.normal(size=10)
        fit = plackett_luce.fit(*drawn(rng, u, count, 4), 10)
        assert np.abs((fit.utility_I - (u - u.mean())) / fit.se_I).max() < 4.5
        found.append(np.corrcoef(fit.utility_I, u)[0, 1])
        bound.append(least_error(rng, u, count, 4))
    assert np.mean(found) >= least
    shortfall = (1 - np.array(found)) / np.array(bound)
    assert abs(shortfall.mean() - 1) < 3 * 0.6 / np.sqrt(seeds)


def test_two_answers_are_bradley_terry() -> None:
    rng = np.random.default_rng(2)
    left = rng.integers(0, 6, 400)
    right = (left + rng.integers(1, 6, 400)) % 6
    outcome = rng.choice(3, 400, p=[0.45, 0.35, 0.2])
    pairs = bradley_terry.fit(left, right, np.array([1, 0, 0.5])[outcome], 6)
    lists = plackett_luce.fit(np.stack([left, right], axis=1), np.array([[1, 2], [2, 1], [1, 1]])[outcome], 6)
    assert np.abs(pairs.utility_I - lists.utility_I).max() < 1e-6
    assert np.abs(pairs.covariance_II - lists.covariance_II).max() < 1e-6
    assert pairs.tie == pytest.approx(lists.tie, abs=1e-6) and pairs.loglik == pytest.approx(lists.loglik, abs=1e-6)


def test_first_choices_have_a_closed_form() -> None:
    # Only the first place is known: the maximum is the log of the shares.
    count = np.array([50, 30, 15, 5])
    rank = np.repeat(np.eye(4, dtype=np.int64), count, axis=0)
    fit = plackett_luce.fit(np.tile(np.arange(4), (100, 1)), rank, 4)
    u = np.log(count)
    assert np.abs(fit.utility_I - (u - u.mean())).max() < 1e-9


def test_agrees_with_choix() -> None:
    rng = np.random.default_rng(4)
    item, rank = drawn(rng, rng.normal(size=7), 200, 7)
    ours = plackett_luce.fit(item, rank, 7)
    theirs = choix.ilsr_rankings(7, [tuple(int(i) for i in np.argsort(row)) for row in rank])
    assert np.abs(ours.utility_I - (theirs - theirs.mean())).max() < 1e-6
    # choix takes partial rankings as rankings of what they name: `ignored`
    item, rank = drawn(rng, rng.normal(size=7), 200, 3)
    ours = plackett_luce.fit(item, rank, 7, unranked="ignored")
    lists = [tuple(int(np.flatnonzero(row == place)[0]) for place in (1, 2, 3)) for row in rank]
    theirs = choix.ilsr_rankings(7, lists)
    assert np.abs(ours.utility_I - (theirs - theirs.mean())).max() < 1e-6


def brute(u: np.ndarray, delta: dict[int, float], rank: tuple[int, ...]) -> float:
    """Davidson-Luce from the definition: the log-probability of one ranking, group by group."""
    left, total = set(range(len(u))), 0.0
    worth = np.exp(u)

    def weight(group: tuple[int, ...]) -> float:
        return delta[len(group)] * float(np.prod(worth[list(group)])) ** (1 / len(group))

    for level in sorted(set(rank) - {0}):
        group = tuple(i for i in sorted(left) if rank[i] == level)
        if len(left) > 1:
            every = [g for size in delta for g in combinations(sorted(left), size)]
            total += np.log(weight(group) / sum(weight(g) for g in every))
        left -= set(group)
    return total


def test_the_likelihood_with_ties_is_the_definition() -> None:
    rng = np.random.default_rng(5)
    u, log_delta = rng.normal(size=4), np.array([0.0, -0.4, -1.1])
    ranks = [(1, 2, 2, 3), (1, 1, 1, 2), (2, 1, 0, 0), (1, 1, 2, 2), (4, 3, 2, 1), (0, 0, 1, 1)]
    steps = plackett_luce.take_apart(np.tile(np.arange(4), (len(ranks), 1)), np.array(ranks))
    assert steps.sizes == (1, 2, 3)
    found = plackett_luce.moments(steps, u[steps.item_SK], log_delta)
    by_ranking = np.bincount(steps.ranking_S, found.loglik_S)
    delta = dict(zip(steps.sizes, np.exp(log_delta), strict=True))
    assert by_ranking == pytest.approx([brute(u, delta, rank) for rank in ranks], abs=1e-12)


def test_probabilities_of_all_rankings_sum_to_one() -> None:
    u, delta = np.array([0.5, -0.2, 0.1]), {1: 1.0, 2: 0.6, 3: 0.3}
    weak = {plackett_luce.dense_ranks(np.array([r]))[0].tobytes(): r for r in np.ndindex(4, 4, 4) if min(r) > 0}
    dense = {tuple(np.frombuffer(key, np.int64).tolist()) for key in weak}
    assert len(dense) == 13  # weak orders of three
    assert sum(np.exp(brute(u, delta, rank)) for rank in dense) == pytest.approx(1)
    steps = plackett_luce.take_apart(np.tile(np.arange(3), (13, 1)), np.array(sorted(dense)))
    m = plackett_luce.moments(steps, u[steps.item_SK], np.log([delta[s] for s in steps.sizes]))
    assert np.exp(np.bincount(steps.ranking_S, m.loglik_S)).sum() == pytest.approx(1)


def test_with_ties_the_maximum_matches_what_was_seen() -> None:
    """At the maximum, expected sufficient statistics equal those seen: the score, by brute force."""
    rng = np.random.default_rng(6)
    ranks = rng.integers(1, 4, (60, 4))
    fit = plackett_luce.fit(np.tile(np.arange(4), (60, 1)), ranks, 4)
    dense = plackett_luce.dense_ranks(ranks)
    sizes = plackett_luce.take_apart(np.tile(np.arange(4), (60, 1)), ranks).sizes

    def loglik(x: np.ndarray) -> float:
        delta = dict(zip(sizes, np.exp(np.concatenate([[0.0], x[4:]])), strict=True))
        return sum(brute(x[:4], delta, tuple(row)) for row in dense.tolist())

    x, h = np.concatenate([fit.utility_I, fit.tie]), 1e-5
    assert loglik(x) == pytest.approx(fit.loglik, abs=1e-9)
    assert max(abs(loglik(x + h * e) - loglik(x - h * e)) / (2 * h) for e in np.eye(len(x))) < 1e-5


def test_weights_are_copies() -> None:
    item = np.array(list(permutations(range(3))) * 2)
    rank = np.array([[1, 2, 3]] * 6 + [[1, 2, 2]] * 6)
    weight = np.array([3, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1])
    one = plackett_luce.fit(item, rank, 3, weight_R=weight)
    two = plackett_luce.fit(np.repeat(item, weight, axis=0), np.repeat(rank, weight, axis=0), 3)
    assert np.abs(one.utility_I - two.utility_I).max() < 1e-9
    assert np.abs(one.covariance_II - two.covariance_II).max() < 1e-9


def test_dense_ranks() -> None:
    given = np.array([[1, 1, 3, 0], [2, 5, 5, 9], [0, 0, 7, 0]])
    assert plackett_luce.dense_ranks(given).tolist() == [[1, 1, 2, 0], [1, 2, 2, 3], [0, 0, 1, 0]]


def test_bad_input() -> None:
    with pytest.raises(UserError, match="nothing to fit"):
        plackett_luce.fit([[0, 1]], [[0, 0]], 2)
    with pytest.raises(UserError, match="no chain of judgements"):
        plackett_luce.fit([[0, 1, 2]], [[1, 2, 3]], 3)
    with pytest.raises(UserError, match="possible groups"):
        plackett_luce.fit([list(range(30))], [[1] * 15 + [2] * 15], 30)
    with pytest.raises(UserError, match="names item 5"):
        plackett_luce.fit([[0, 5]], [[1, 2]], 3)
