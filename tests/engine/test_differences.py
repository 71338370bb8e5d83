"""Intervals of differences hold what they say: against closed forms, and against data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.statistics.differences import crossed_mean, difference


def test_pairing_takes_away_what_prompts_have_in_common() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(0, 10, 200)
    first = {str(i): float(value) for i, value in enumerate(hard)}
    second = {str(i): float(value + 0.5 + random.normal(0, 1)) for i, value in enumerate(hard)}
    paired = difference(first, second)
    apart = difference(first, {f"other {name}": value for name, value in second.items()})
    assert paired and apart and paired.paired and not apart.paired
    assert paired.value == pytest.approx(apart.value) and paired.beyond_noise and not apart.beyond_noise
    # The closed forms: 1.96 standard errors of the differences, and of two independent means.
    each = np.array([second[name] - first[name] for name in first])
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * each.std() / math.sqrt(200), rel=0.1)
    both = math.hypot(*(np.std(list(values.values())) / math.sqrt(200) for values in (first, second)))
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * both, rel=0.1)


def test_the_same_everywhere_is_within_noise_and_nothing_has_no_difference() -> None:
    same = difference(dict.fromkeys("abcdef", 1.0), dict.fromkeys("abcdef", 1.0))
    assert same and (same.value, same.beyond_noise) == (0, False) and same.low == -same.high
    assert same.high == pytest.approx(3.8415 / (6 + 3.8415), rel=1e-4)  # Wilson's bound of 0 in 6
    assert difference({}, {"a": 1.0}) is None


def test_of_prompts_and_seeds_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for prompts, seeds, of_prompts, of_seeds in ((30, 3, 1.0, 0.3), (100, 3, 1.0, 0.1), (50, 5, 0.1, 0.3)):
        held = 0
        for _ in range(400):
            drawn = random.normal(0, of_prompts, (prompts, 1)) + random.normal(0, of_seeds, (1, seeds))
            told = crossed_mean(drawn + random.normal(0, 1, (prompts, seeds)))
            held += told.low <= 0 <= told.high
        assert 0.9 <= held / 400 <= 0.99, (prompts, seeds)


def test_one_seed_is_a_t_interval_over_prompts_and_one_prompt_one_over_seeds() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    for matrix in (values[:, None], values[None, :]):
        told = crossed_mean(matrix)
        assert told.value == 2.5  # t(.975, 3) = 3.1824, s/sqrt(n) = .6455
        assert (told.low, told.high) == pytest.approx((2.5 - 3.1824 * 0.6455, 2.5 + 3.1824 * 0.6455), abs=1e-3)
    assert math.isnan(crossed_mean(np.array([[0.5, 0.5]])).low)
    assert (crossed_mean(np.ones((10, 3))).low, crossed_mean(np.ones((10, 3))).high) == (
        pytest.approx(1 - 3.8415 / (10 + 3.8415), rel=1e-4), 1.0,
    )  # fmt: skip
