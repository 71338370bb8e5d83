"""Length-controlled win rates against a simulated judge whose taste for length is known."""

import numpy as np
import pytest

from engine.errors import UserError
from training.evaluate import length_control


def judged(quality: list[float], extra: list[float], pays: float, prompts: int = 500, seed: int = 0):
    """Binary judgements of models that write `extra` more than the baseline, in standard deviations."""
    random = np.random.default_rng(seed)
    baseline = random.uniform(800, 1200, prompts)
    delta = np.array(extra)[:, None] * 300 + random.normal(0, 300, (len(quality), prompts))
    hard = random.normal(0, 0.7, prompts)
    logit = np.array(quality)[:, None] + pays * np.tanh(delta / delta.std(1, keepdims=True)) + hard
    y = (random.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(float)
    truth = (1 / (1 + np.exp(-(np.array(quality)[:, None] + hard)))).mean(1)
    return y, baseline + delta, baseline, truth


def test_what_length_pays_is_taken_out() -> None:
    y, lengths, baseline, truth = judged([0.0, 0.0, 0.0, 1.0, -1.0, 0.5], [0, 2, -2, -1, 1, 0], pays=1.0)
    found = length_control.fit(y, lengths, baseline)
    assert found.raw_M[1] > 0.6 and found.raw_M[2] < 0.4  # the judge took length for quality
    assert np.abs(found.win_rate_M - truth).max() < 0.07
    assert np.abs(found.win_rate_M - truth).mean() < 0.5 * np.abs(found.raw_M - truth).mean()
    # of a model that is always longer, length and quality can hardly be told apart; of these two they can (se 0.15)
    assert found.phi_M[[0, 5]] == pytest.approx(np.ones(2), abs=0.4) and found.phi_M.mean() == pytest.approx(
        1, abs=0.25
    )


def test_a_judge_that_does_not_care_for_length_is_left_alone() -> None:
    y, lengths, baseline, _ = judged([0.0, 1.0, -0.5, 0.3], [0, 2, -2, 1], pays=0.0, seed=1)
    found = length_control.fit(y, lengths, baseline)
    assert np.abs(found.win_rate_M - found.raw_M).max() < 0.05
    assert np.abs(found.phi_M[[0, 3]]).max() < 0.3 and abs(found.phi_M.mean()) < 0.15


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for trial in range(25):
        y, lengths, baseline, truth = judged([0.5, -0.5, 0.0], [1, 0, -1], pays=0.8, prompts=300, seed=10 + trial)
        found = length_control.fit(y, lengths, baseline)
        intervals = [found.interval(i, trial, resamples=200) for i in range(3)]
        held += sum(one.low <= t <= one.high for one, t in zip(intervals, truth, strict=True))
    assert 65 <= held <= 75  # 71 expected; se 1.9


def test_intervals_hold_the_value_and_depend_on_the_seed_alone() -> None:
    y, lengths, baseline, _ = judged([0.3, -0.3], [1, 0], pays=0.5)
    found = length_control.fit(y, lengths, baseline)
    one = found.interval(0, 1)
    assert one.low < one.value < one.high and one == found.interval(0, 1) != found.interval(0, 2)


def test_missing_judgements_count_for_nothing_and_one_model_alone_is_enough() -> None:
    y, lengths, baseline, _ = judged([0.4, 0.0], [1, 0], pays=0.8)
    holes = y.copy()
    holes[:, :100] = np.nan
    short = length_control.fit(holes[:, 100:], lengths[:, 100:], baseline[100:])
    holed = length_control.fit(holes, lengths, baseline)
    assert holed.theta_M == pytest.approx(short.theta_M, abs=1e-3)
    alone = length_control.fit(y[:1], lengths[:1], baseline)
    assert (alone.gamma_X == 0).all() and 0.5 < alone.win_rate_M[0] < alone.raw_M[0] + 0.02


def test_what_is_no_preference_is_refused() -> None:
    with pytest.raises(UserError, match="outside"):
        length_control.fit([[1.5, 0.0]], [[1, 2]], [1, 2])
    with pytest.raises(UserError, match="1 of 2 models have no judgement"):
        length_control.fit([[1.0, 0.0], [np.nan, np.nan]], [[1, 2], [1, 2]], [1, 2])
