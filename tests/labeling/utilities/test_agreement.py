from __future__ import annotations

import krippendorff
import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata

from labeling.utilities import agreement


def ratings(seed: int, annotators: int = 4, units: int = 60) -> np.ndarray:
    """Ratings 1..5 with some agreement and a fifth missing, (annotators, units)."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (annotators, units)).astype(float)
    x[1:] = np.where(rng.random((annotators - 1, units)) < 0.6, x[0], x[1:])
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


def alpha(x: np.ndarray, group: int = 3) -> agreement.Agreement:
    unit = np.tile(np.arange(x.shape[1]), len(x))
    return agreement.krippendorff_alpha(unit, x.ravel(), unit // group)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_agrees_with_the_kept_library(seed: int) -> None:
    x = ratings(seed)
    expected = krippendorff.alpha(x, level_of_measurement="ordinal")
    found = alpha(x)
    assert found.value == pytest.approx(expected, abs=1e-12) and found.low < found.value < found.high


def test_alpha_on_krippendorffs_own_example() -> None:
    # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: 12 units, 4 observers, ordinal .815
    nan = np.nan
    x = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    assert round(alpha(x).value, 3) == 0.815


def test_the_interval_of_alpha_covers() -> None:
    """200 studies of 40 prompts from one population: the interval holds the population's alpha 95 % of the time."""

    def study(rng: np.random.Generator, prompts: int) -> agreement.Agreement:
        u = rng.normal(size=(prompts, 1, 4))
        ranks = np.argsort(np.argsort(-(u + rng.gumbel(size=(prompts, 3, 4))), axis=2), axis=2) + 1
        unit = (np.arange(prompts)[:, None, None] * 4 + np.arange(4)) * np.ones((1, 3, 1), np.int64)
        return agreement.krippendorff_alpha(unit.ravel(), ranks.ravel(), unit.ravel() // 4, draws=300)

    truth = study(np.random.default_rng(99), 20_000).value
    found = [study(np.random.default_rng(seed), 40) for seed in range(200)]
    assert 0.90 <= np.mean([a.low < truth < a.high for a in found]) <= 0.99


def test_alpha_of_nothing_is_not_a_number() -> None:
    assert np.isnan(agreement.krippendorff_alpha([0, 1], [1, 2], [0, 0]).value)
    assert np.isnan(agreement.krippendorff_alpha([0, 0], [1, 1], [0, 0]).value)
    assert agreement.krippendorff_alpha([0, 0], [1, 1], [0, 0]).as_json()["value"] is None


@pytest.mark.parametrize("seed", range(3))
def test_kendalls_w_is_friedmans_test_rescaled(seed: int) -> None:
    ranks = np.array([agreement.mid_ranks(row) for row in np.random.default_rng(seed).integers(1, 4, (6, 5)).tolist()])
    judges, items = ranks.shape
    expected = friedmanchisquare(*ranks.T).statistic / (judges * (items - 1))
    assert agreement.kendall_w(ranks) == pytest.approx(expected, abs=1e-12)


def test_kendalls_w_at_its_ends() -> None:
    assert agreement.kendall_w([[1, 2, 3]] * 4) == pytest.approx(1)
    assert agreement.kendall_w([[1, 2, 3], [3, 2, 1]]) == pytest.approx(0)
    assert np.isnan(agreement.kendall_w([[1, 2, 3]])) and np.isnan(agreement.kendall_w([[2, 2, 2]] * 2))


def test_mid_ranks() -> None:
    assert agreement.mid_ranks([1, 1, 2]) == agreement.mid_ranks([1, 1, 3]) == [1.5, 1.5, 3]
    row = [3, 1, 1, 7, 3]
    assert agreement.mid_ranks(row) == rankdata(row).tolist()
    assert agreement.mid_ranks([1, None, None]) == [1, 2.5, 2.5]
    ignored = agreement.mid_ranks([2, None, 1], unranked_below=False)
    assert ignored[::2] == [2, 1] and np.isnan(ignored[1])
