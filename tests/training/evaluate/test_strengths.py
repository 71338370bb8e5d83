"""Strengths of models against labelling's own estimator, and their intervals against simulation."""

import numpy as np
import pytest

from labeling.utilities import bradley_terry
from training.evaluate import strengths


def utilities(strength: list[float], prompts: int, answers: int, seed: int) -> list[dict[str, list[float]]]:
    """Gumbel noise: the higher of two utilities follows Bradley-Terry."""
    random = np.random.default_rng(seed)
    return [{str(x): list(s + random.gumbel(size=answers)) for x in range(prompts)} for s in strength]


def test_the_strengths_are_those_of_another_estimator() -> None:
    given = utilities([0.0, 1.0, -0.5, 0.2], 60, 3, 0)
    shares = strengths.meetings(given)
    i, j = np.triu_indices(4, 1)
    left, right = np.tile(i, 60), np.tile(j, 60)
    other = bradley_terry.fit(left, right, shares[:, i, j].ravel(), 4, ties="half")
    found = strengths.strengths(shares.sum(0))
    assert found == pytest.approx(other.utility_I, abs=0.02)  # but for half a meeting of the prior
    plain = strengths.strengths(1e6 * shares.sum(0))
    assert plain == pytest.approx(other.utility_I, abs=1e-5)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth = np.array([0.8, 0.0, -0.8])
    held = 0
    for trial in range(60):
        found = strengths.intervals(utilities(list(truth), 80, 2, trial), trial, resamples=200)
        held += sum(one.low <= t <= one.high for one, t in zip(found, truth, strict=True))
    assert 0.89 <= held / 180 <= 0.99


def test_a_model_that_always_wins_has_a_finite_strength_and_equal_ones_have_none_over_each_other() -> None:
    always = strengths.intervals([{"a": [2.0], "b": [2.0]}, {"a": [1.0], "b": [1.0]}])
    assert 0 < always[0].value < 3 and always[0].value == -always[1].value
    equal = strengths.intervals([{"a": [1.0]}, {"a": [1.0]}, {"a": [1.0]}])
    assert [one.value for one in equal] == pytest.approx([0, 0, 0])
