from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from labeling.utilities import plackett_luce, reliability


def simulated(
    rng: np.random.Generator, prompts: int, slopes: Sequence[float], *, pull: float = 0.0, per: int | None = None
) -> tuple[np.ndarray, reliability.Judgements]:
    """Rankings of 4 answers by annotators of these reliabilities; the true utilities (prompts, 4), centred."""
    u = rng.normal(0, 1.5, (prompts, 4))
    ranks, shown, who, items = [], [], [], []
    for p in range(prompts):
        for a in range(len(slopes)) if per is None else rng.choice(len(slopes), per, replace=False):
            place = rng.permutation(4)
            worth = slopes[a] * u[p] + pull * (0.5 - place / 3) + rng.gumbel(size=4)
            ranks.append(np.argsort(np.argsort(-worth)) + 1)
            shown.append(place)
            who.append(a)
            items.append(4 * p + np.arange(4))
    block = np.repeat(np.arange(prompts), 4)
    columns = (np.array(items), np.array(ranks), np.array(shown), np.array(who))
    return u - u.mean(axis=1, keepdims=True), reliability.Judgements(*columns, block, len(slopes))


def mean_rank(judgements: reliability.Judgements) -> np.ndarray:
    """Plain averaging: minus the mean rank of each answer."""
    count = np.bincount(judgements.item_RK.ravel())
    total = np.bincount(judgements.item_RK.ravel(), judgements.rank_RK.ravel().astype(float))
    return -(total / count)


def test_annotators_who_rank_at_random_are_found_and_no_others() -> None:
    gains = []
    for seed in range(10):
        u, judgements = simulated(np.random.default_rng(seed), 40, [1, 1, 1, 1, 0, 0])
        fit = reliability.fit(judgements)
        assert fit.unreliable_A.tolist() == [False] * 4 + [True] * 2
        ours = np.corrcoef(fit.utility_I, u.ravel())[0, 1]
        plain = np.corrcoef(mean_rank(judgements), u.ravel())[0, 1]
        gains.append(ours - plain)
    assert min(gains) > 0


def test_reliability_intervals_cover_and_the_scale_is_right() -> None:
    slopes = [1.4, 1.0, 0.6, 0.0, -0.5]
    scale = sum(s**2 for s in slopes if s > 0) / sum(s for s in slopes if s > 0)  # of the typical annotator
    covered, spread, error = [], [], []
    for seed in range(20):
        u, judgements = simulated(np.random.default_rng(100 + seed), 60, slopes)
        fit = reliability.fit(judgements)
        truth = np.array(slopes) / scale
        covered.append(np.abs(fit.slope_A - truth) < 2.5 * fit.slope_se_A)
        spread.append(fit.spread / scale)
        inside = []
        for p in range(60):
            d, sd = fit.difference(4 * p, 4 * p + 1)
            inside.append(abs(d - scale * (u[p, 0] - u[p, 1])) < 1.96 * sd)
        error.append(np.mean(inside))
    assert np.mean(covered) > 0.95
    assert np.mean(spread) == pytest.approx(1.5, rel=0.15)
    assert 0.88 < np.mean(error) < 0.99


@pytest.mark.parametrize("per", [None, 3])
def test_planted_position_bias_is_detected_and_corrected(per: int | None) -> None:
    better = []
    for seed in range(6):
        u, judgements = simulated(np.random.default_rng(seed), 60, [1] * 4, pull=1.0, per=per)
        fit = reliability.fit(judgements)
        assert fit.position > 1.96 * fit.position_se
        assert abs(fit.position - 1.0) < 3.5 * fit.position_se
        blind = reliability.fit(judgements, position=False)
        better.append(np.corrcoef(fit.utility_I, u.ravel())[0, 1] - np.corrcoef(blind.utility_I, u.ravel())[0, 1])
    assert np.mean(better) > 0


def test_no_bias_is_not_found_where_none_is() -> None:
    detected = []
    for seed in range(20):
        _, judgements = simulated(np.random.default_rng(seed), 25, [1] * 3)
        fit = reliability.fit(judgements)
        detected.append(abs(fit.position) > 1.96 * fit.position_se)
    assert np.mean(detected) <= 0.2


def test_annotators_of_one_kind_give_the_posterior_of_plackett_luce() -> None:
    """Without weighing, utilities are the penalised Plackett-Luce maximum of each prompt."""
    _, judgements = simulated(np.random.default_rng(7), 5, [1, 1, 1])
    fit = reliability.fit(judgements, weigh=False, position=False)
    assert fit.slope_A.tolist() == [1, 1, 1] and not fit.estimated
    for p in range(5):
        rows = judgements.item_RK[:, 0] // 4 == p
        alone = plackett_luce.fit(judgements.item_RK[rows] - 4 * p, judgements.rank_RK[rows], 4, prior=fit.spread**-2)
        assert np.abs(alone.utility_I - fit.utility_I[4 * p : 4 * p + 4]).max() < 1e-5
        contrast = np.array([1.0, -1, 0, 0])
        assert fit.difference(4 * p, 4 * p + 1)[1] == pytest.approx(
            np.sqrt(contrast @ alone.covariance_II @ contrast), abs=1e-5
        )


def test_one_annotator_a_prompt_says_nothing_of_reliability() -> None:
    _, judgements = simulated(np.random.default_rng(8), 30, [1, 0], per=1)
    fit = reliability.fit(judgements)
    assert not fit.estimated and fit.slope_A.tolist() == [1, 1] and not fit.unreliable_A.any()


def test_a_gold_key_tells_who_is_right_when_the_rest_are_even() -> None:
    rng = np.random.default_rng(9)
    u, judgements = simulated(rng, 40, [1.5, 0, 0])
    key = np.argsort(-u, axis=1)[:, [0, 3]] + 4 * np.arange(40)[:, None]
    item = np.concatenate([judgements.item_RK, np.concatenate([key, np.full((40, 2), -1)], axis=1)])
    rank = np.concatenate([judgements.rank_RK, np.tile([1, 2, 0, 0], (40, 1))])
    shown = np.concatenate([judgements.shown_RK, np.full((40, 4), -1)])
    who = np.concatenate([judgements.annotator_R, np.full(40, 3)])
    keyed = reliability.Judgements(item, rank, shown, who, judgements.block_I, 4)
    fit = reliability.fit(keyed, pinned={3: 3.0})
    assert fit.slope_A[3] == 3.0 and fit.slope_A[0] > 0.7 and np.abs(fit.slope_A[1:3]).max() < 0.35


def test_accuracy_runs_from_a_coin_to_certainty() -> None:
    _, judgements = simulated(np.random.default_rng(10), 10, [1, 1])
    fit = reliability.fit(judgements)
    assert fit.accuracy(0) == pytest.approx(0.5) and fit.accuracy(50) > 0.95
    # by simulation
    rng = np.random.default_rng(0)
    gap = np.abs(rng.normal(size=200_000)) * np.sqrt(2) * fit.spread
    assert fit.accuracy(1.2) == pytest.approx(np.mean(1 / (1 + np.exp(-1.2 * gap))), abs=0.005)
