from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labeling.ask.information import choose, information


def entropy(p: Any) -> Any:
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def test_information_is_the_mutual_information_by_simulation() -> None:
    rng = np.random.default_rng(0)
    mean, sd = np.array([0.0, 0.5, 2.0, 0.0]), np.array([1.0, 2.0, 1.5, 0.0])
    p = 1 / (1 + np.exp(-(mean[:, None] + sd[:, None] * rng.standard_normal((4, 400_000)))))
    expected = entropy(p.mean(axis=1)) - entropy(p).mean(axis=1)
    assert information(mean, sd) == pytest.approx(expected, abs=2e-3)
    assert information(np.zeros(1), np.array([1e3]))[0] == pytest.approx(np.log(2), abs=0.05)


def test_picks_shrink_what_they_settle() -> None:
    # Pairs 0 and 1 ask the same thing; pair 2 asks another, a little less uncertain.
    factor = np.array([[1.5, 0.0], [1.5, 0.0], [0.0, 1.4]])
    assert [p.pair for p in choose(np.zeros(3), factor, 2)] == [0, 2]
    picks = choose(np.zeros(3), factor, 3)
    assert [p.pair for p in picks] == [0, 2, 1]
    assert picks[2].expected < picks[0].expected
    # The posterior after one judgement of expected curvature, by the textbook formula.
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    s = 1 / (1 + np.exp(-1.5 * nodes))
    curvature = (s * (1 - s)) @ (weights / weights.sum())
    after = 1 / (1 / 1.5**2 + curvature)
    assert picks[2].expected == pytest.approx(information(np.zeros(1), np.sqrt([after]))[0], abs=1e-6)


def test_one_pair_a_prompt() -> None:
    rng = np.random.default_rng(1)
    factor, group = rng.normal(size=(60, 3)), np.arange(60) // 6
    picks = choose(rng.normal(size=60), factor, 20, group_P=group)
    assert len(picks) == 10 and len({group[p.pair] for p in picks}) == 10
