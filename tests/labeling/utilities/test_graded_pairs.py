from __future__ import annotations

import numpy as np
import pytest

from engine.errors import UserError
from labeling.utilities import graded_pairs


def test_without_shared_effects_it_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=5)
    left = rng.integers(0, 5, 300)
    right = (left + rng.integers(1, 5, 300)) % 5
    y = u[left] - u[right] + 0.3 * rng.normal(size=300)
    fit = graded_pairs.fit(left, right, y, 5, np.arange(300))  # every judgement a prompt of its own
    design = np.eye(5)[left] - np.eye(5)[right]
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    assert np.abs(fit.utility_I - (expected - expected.mean())).max() < 1e-9


def test_what_a_prompt_shares_is_taken_out_and_intervals_cover() -> None:
    """Everyone against one rival, whose answers are now good, now bad: as in AlpacaEval."""
    gains, covered = [], []
    u = np.concatenate([[0.0], np.linspace(-1, 1, 8)])
    for seed in range(60):
        rng = np.random.default_rng(seed)
        prompt = np.repeat(np.arange(60), 8)
        left = np.tile(np.arange(1, 9), 60)
        keep = rng.random(480) < 0.5
        left, prompt = left[keep], prompt[keep]
        y = u[left] - 2.0 * rng.normal(size=60)[prompt] + 0.5 * rng.normal(size=len(left))
        fit = graded_pairs.fit(left, np.zeros_like(left), y, 9, prompt)
        plain = np.array([y[left == i].mean() for i in range(1, 9)])
        gains.append(np.corrcoef(fit.utility_I[1:], u[1:])[0, 1] - np.corrcoef(plain, u[1:])[0, 1])
        for i, j in ((1, 8), (2, 5), (3, 4)):
            d, se = fit.difference(i, j)
            covered.append(abs(d - (u[i] - u[j])) < 1.96 * se)
    assert np.mean(gains) > 0.02 and 0.88 <= np.mean(covered) <= 0.99


def test_log_odds() -> None:
    assert graded_pairs.log_odds([0.5, 0.0, 1.0]) == pytest.approx([0, -np.log(1e6 - 1), np.log(1e6 - 1)])


def test_bad_input() -> None:
    with pytest.raises(UserError, match="finite log-odds"):
        graded_pairs.fit([0], [1], [np.inf], 2, [0])
    with pytest.raises(UserError, match="not joined"):
        graded_pairs.fit([0, 2], [1, 3], [1, 1], 4, [0, 1])
