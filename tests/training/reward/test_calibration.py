"""Calibration of simulated reward models whose true miscalibration is known."""

import numpy as np
import pytest

from training.reward import calibration


def differences(count: int, temperature: float, random: np.random.Generator) -> np.ndarray:
    """r_chosen - r_rejected of a model whose differences are log-odds times this temperature."""
    size = np.abs(random.normal(0, 1.5, count))
    won = random.random(count) < 1 / (1 + np.exp(-size / temperature))
    return np.where(won, size, -size)


def test_the_temperature_is_found_again_and_calibrates() -> None:
    given = differences(20_000, 2.0, np.random.default_rng(0))
    found = calibration.fit_temperature(given)
    assert found == pytest.approx(2.0, rel=0.1)
    assert calibration.ece(given / found) < 0.015 < 0.08 < calibration.ece(given)
    assert calibration.fit_temperature(np.array([])) == 1.0
    # all of 8 equal pairs right: as sure as 9 of 10, not certain
    few = np.full(8, 3.0)
    assert 1 / (1 + np.exp(-3.0 / calibration.fit_temperature(few))) == pytest.approx(0.9, abs=1e-4)


def test_ece_and_brier_of_a_handful_by_hand() -> None:
    d = np.log(np.array([3.0, 3.0, 3.0, 1 / 3]))  # 75 % each, three of four go that way
    assert calibration.ece(d, bins=1) == pytest.approx(0.0)
    assert calibration.brier(d) == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert calibration.nll(np.zeros(3)) == pytest.approx(np.log(2)) and calibration.brier(np.zeros(3)) == 0.25


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_intervals_hold_the_truth_as_often_as_they_say(temperature: float) -> None:
    random = np.random.default_rng(1)
    many = differences(400_000, temperature, random)
    truth, brier = calibration.ece(many), calibration.brier(many)
    held = scored = 0
    for trial in range(40):
        given = differences(500, temperature, random)
        clusters = [str(i) for i in range(500)]
        found = calibration.ece_interval(given, clusters, trial, resamples=100)
        held += found.low <= truth <= found.high
        one = calibration.brier_interval(given, clusters, trial)
        scored += one.low <= brier <= one.high
    assert held >= 35 and scored >= 35  # 38 expected of 40; se 1.4


def test_pairs_of_one_prompt_count_as_one() -> None:
    given = differences(200, 2.0, np.random.default_rng(2))
    once = calibration.brier_interval(given, [str(i) for i in range(200)])
    again = calibration.brier_interval(np.tile(given, 5), [str(i) for i in range(200)] * 5)
    assert again.value == pytest.approx(once.value)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.15)
