"""Win rates and their intervals against simulations whose truth is known."""

import numpy as np
import pytest

from engine.errors import UserError
from engine.statistics import bootstrap
from training.evaluate import win_rate


def test_every_pair_of_answers_counts_and_ties_count_half() -> None:
    ours, theirs = {"a": [1.0, 2.0], "b": [5.0]}, {"a": [1.0, 0.0, 3.0], "b": [5.0]}
    # a: 1 vs (1, 0, 3) = .5 + 1 + 0; 2 vs (1, 0, 3) = 1 + 1 + 0; together 3.5 of 6. b: a tie.
    assert win_rate.by_prompt(ours, theirs) == pytest.approx({"a": 3.5 / 6, "b": 0.5})
    assert win_rate.against(ours, theirs).value == pytest.approx((3.5 / 6 + 0.5) / 2)
    assert win_rate.against(theirs, ours).value == pytest.approx(1 - (3.5 / 6 + 0.5) / 2)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Prompts differ in how far apart the models are, so answers to one prompt are alike: the case that breaks
    intervals over answers."""
    random = np.random.default_rng(0)
    shift = 0.3
    from statistics import NormalDist

    # u_ours - u_theirs = shift + prompt effect (sd 1) + difference of two noises (sd 1 each): P(> 0)
    truth = NormalDist().cdf(shift / np.sqrt(1 + 2))
    covered = naive = 0
    for trial in range(300):
        effect = random.normal(size=60)
        ours = {str(p): list(shift + effect[p] + random.normal(size=4)) for p in range(60)}
        theirs = {str(p): list(random.normal(size=4)) for p in range(60)}
        found = win_rate.against(ours, theirs, trial)
        covered += found.low <= truth <= found.high
        rate = found.value
        half = 1.96 * np.sqrt(rate * (1 - rate) / (60 * 4))
        naive += rate - half <= truth <= rate + half
    assert 0.91 <= covered / 300 <= 0.985
    assert naive < covered  # what counting answers as independent would have given


def test_a_proportion_of_all_or_none_still_has_width() -> None:
    found = bootstrap.mean([1.0] * 40, [str(i // 2) for i in range(40)])
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(1 - 3.8415 / 23.8415, abs=1e-3)
    assert bootstrap.mean([0.0] * 10, list("abcdefghij")).high == pytest.approx(3.8415 / 13.8415, abs=1e-3)
    assert np.isnan(bootstrap.mean([], []).value)


def test_clusters_count_the_same_and_the_result_depends_on_the_seed_alone() -> None:
    values, clusters = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    assert bootstrap.mean(values, clusters).value == 0.5
    one = bootstrap.mean(np.arange(30.0), [str(i) for i in range(30)], 1)
    assert one == bootstrap.mean(np.arange(30.0), [str(i) for i in range(30)], 1)
    assert one != bootstrap.mean(np.arange(30.0), [str(i) for i in range(30)], 2)


def test_the_general_statistic_agrees_with_the_mean_where_clusters_have_one_row() -> None:
    values = np.random.default_rng(0).normal(size=200)
    clusters = [str(i) for i in range(200)]
    general = bootstrap.statistic(clusters, lambda rows: float(values[rows].mean()), resamples=2000)
    special = bootstrap.mean(values, clusters)
    assert general.value == special.value
    assert (general.low, general.high) == pytest.approx((special.low, special.high), abs=0.02)


def test_models_that_answered_other_prompts_are_not_compared() -> None:
    with pytest.raises(UserError, match="1 prompts were answered by one of two models only, such as b"):
        win_rate.by_prompt({"a": [1.0], "b": [1.0]}, {"a": [1.0]})
