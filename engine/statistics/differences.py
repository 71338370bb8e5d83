"""How far two samples, or the settings of a sweep, lie apart, with intervals that count prompts, and seeds where there are several.

Where both were measured on the same prompts, differences are taken prompt by prompt: what is hard for one is hard for the other, and
that part of the noise goes (Miller 2024, arXiv:2411.00640, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.seeds import generator
from engine.statistics.bootstrap import RESAMPLES, Interval

PAIRED = 0.9  # share of the prompts that both must have
Z2 = 1.959963984540054**2


@dataclass(frozen=True)
class Difference:
    """The second minus the first, with its 95 % interval.

    Attributes:
        prompts: that went into it, of both together where it is not paired.
        paired: whether it was taken prompt by prompt.
    """

    value: float
    low: float
    high: float
    prompts: int
    paired: bool

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval has no zero in it."""
        return self.low > 0 or self.high < 0


def difference(first: Mapping[str, float], second: Mapping[str, float], *seed: str | int) -> Difference | None:
    """How much more the second has on average, by the bootstrap over prompts; None where one has nothing.

    Args:
        first, second: prompt -> the mean of what was measured of its answers.
    """
    if not first or not second:
        return None
    both = sorted(first.keys() & second.keys())
    random = generator("difference", *seed)
    if len(both) >= PAIRED * max(len(first), len(second)):
        each = np.array([second[name] - first[name] for name in both])
        low, high = _bounds(each, random)
        return Difference(float(each.mean()), low, high, len(both), True)
    one, other = (np.array([values[name] for name in sorted(values)]) for values in (first, second))
    drawn = _means(other, random) - _means(one, random)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(other.mean() - one.mean()), float(low), float(high), len(one) + len(other), False)


def _bounds(each: NDArray[np.float64], random: np.random.Generator) -> tuple[float, float]:
    if (
        np.ptp(each) == 0
    ):  # no spread to draw from: how far a share can lie from what n of n showed (Wilson's score interval)
        far = Z2 / (len(each) + Z2) * max(1.0, abs(float(each[0])))
        return float(each[0]) - far, float(each[0]) + far
    low, high = np.quantile(_means(each, random), [0.025, 0.975])
    return float(low), float(high)


def _means(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    n = len(values)
    if n <= 5000:
        return values[random.integers(0, n, size=(RESAMPLES, n))].mean(1)
    return np.array([values[random.integers(0, n, size=n)].mean() for _ in range(RESAMPLES)])


def crossed_mean(values: NDArray[np.float64]) -> Interval:
    """The mean over prompts and seeds, as an estimate for other prompts and other seeds.

    Prompts and seeds are crossed random effects (Searle, Casella and McCulloch 1992, chapter 5): the variance of the mean is
    s2_prompts/n + s2_seeds/m + s2_rest/(n m), estimated from the two-way table without replication; the interval is Student's t with
    Satterthwaite's degrees of freedom, since a few seeds tell little of how much seeds differ.

    Args:
        values: of shape (prompts, seeds); the mean of what was measured of a prompt's answers with a seed.

    Returns:
        NaN bounds where one value is all there is, though it may be there several times.
    """
    n, m = values.shape
    mean = float(values.mean())
    by_prompt, by_seed = values.mean(1), values.mean(0)
    if m == 1:
        terms = [(float(by_prompt.var(ddof=1)) / n, n - 1)] if n > 1 else []
    elif n == 1:
        terms = [(float(by_seed.var(ddof=1)) / m, m - 1)]
    else:
        rest = values - by_prompt[:, None] - by_seed[None, :] + mean
        noise = float((rest**2).sum()) / ((n - 1) * (m - 1))
        terms = [
            (float(by_prompt.var(ddof=1)) / n, n - 1),
            (float(by_seed.var(ddof=1)) / m, m - 1),
            (-noise / (n * m), (n - 1) * (m - 1)),
        ]
    if not terms or (n == 1 and not terms[0][0]):
        return Interval(mean, math.nan, math.nan)
    # Below either part alone no estimate of their sum makes sense: the third term is itself noise.
    variance = max(sum(part for part, _ in terms), *(part for part, _ in terms))
    if variance <= 0:
        far = Z2 / (n + Z2)  # of a share where all agree: Wilson's bound, which a share can't be beyond
        return Interval(mean, mean if mean == 0 else mean - far, mean if mean == 1 else mean + far)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in terms)
    far = _student(freedom) * math.sqrt(variance)
    return Interval(mean, mean - far, mean + far)


def _student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def by_prompt(prompts: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Prompt -> mean of its values."""
    told: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        told.setdefault(prompt, []).append(value)
    return {prompt: math.fsum(each) / len(each) for prompt, each in told.items()}
