"""Are differences of rewards the log-odds they claim to be?

A reward model says that answer a beats b with probability sigmoid((r_a - r_b) / temperature). Calibrated means: of the
pairs for which it says 70 %, 70 % go that way. ECE and Brier score as in Guo et al. (2017, "On calibration of modern
neural networks"); temperature scaling from the same paper, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.seeds import generator
from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval

Floats = NDArray[np.float64]


def confidence(difference: Floats, temperature: float = 1.0) -> tuple[Floats, Floats]:
    """For each pair: the probability (0.5 to 1) of the side the model favours, and whether (1 or 0) that side won.

    `difference` is r_chosen - r_rejected; a pair it gives no opinion on (0) counts half.
    """
    probability = 1 / (1 + np.exp(-np.abs(difference) / temperature))
    return probability, np.where(difference > 0, 1.0, np.where(difference < 0, 0.0, 0.5))


def ece(difference: Floats, temperature: float = 1.0, bins: int = 10) -> float:
    """Expected calibration error over bins that each hold the same number of pairs, in [0, 1].

    Equal-mass bins: with equal widths most pairs of a weak model share one bin, which hides what happens inside it.
    """
    probability, won = confidence(difference, temperature)
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(len(p) * abs(probability[p].mean() - won[p].mean()) for p in parts) / len(order))


def brier(difference: Floats, temperature: float = 1.0) -> float:
    """Mean squared error of the probability given to `chosen`, in [0, 1]; 0.25 is a coin."""
    return float(np.mean((1 / (1 + np.exp(-difference / temperature)) - 1) ** 2))


def nll(difference: Floats, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the choices, in nats; ln 2 is a coin."""
    return float(np.mean(np.logaddexp(0, -difference / temperature)))


def brier_interval(difference: Floats, clusters: Sequence[str], *seed: str | int) -> Interval:
    """The Brier score with its 95 % interval over resampled prompts."""
    return bootstrap.statistic(clusters, lambda rows: brier(difference[rows]), "brier", *seed)


def ece_interval(difference: Floats, clusters: Sequence[str], *seed: str | int, resamples: int = 500) -> Interval:
    """The expected calibration error with its 95 % interval.

    An average of absolute values is positive by chance alone, and more so in a resample, so percentiles would lie above
    the truth. The interval is the estimate and 1.96 standard errors over resampled prompts to each side; its lower end
    is 0 where the estimate is no more than 95 % of perfectly calibrated models would show on as many pairs (consistency
    resampling; Bröcker and Smith 2007, "Increasing the reliability of reliability diagrams").
    """
    resampled = bootstrap.statistic(clusters, lambda rows: ece(difference[rows]), "ece", *seed, resamples=resamples)
    half = (resampled.high - resampled.low) / 2
    by_chance = np.quantile(calibrated_ece(difference, "ece", *seed, resamples=resamples), 0.95)
    low = 0.0 if resampled.value <= by_chance else max(resampled.value - half, 0.0)
    return Interval(resampled.value, low, resampled.value + half)


def calibrated_ece(difference: Floats, *seed: str | int, resamples: int = 500) -> Floats:
    """What a perfectly calibrated model's ECE looks like on these pairs: drawn anew, each by the probability claimed."""
    probability, _ = confidence(difference)
    draws = generator("calibrated", *seed).random((resamples, len(probability))) < probability
    return np.array([ece(np.where(won, 1.0, -1.0) * np.abs(difference)) for won in draws])


def fit_temperature(difference: Floats) -> float:
    """The temperature in [0.01, 100] with the highest likelihood of the choices; 1 for no pairs.

    Of n pairs, (n + 1) / (n + 2) of a choice is taken to be certain, as Platt (1999, "Probabilistic outputs for support
    vector machines", section 2.2) does: else a model that gets every one of a few pairs right would be given certainty.
    The likelihood is concave in 1 / temperature, so a golden-section search on its logarithm finds the optimum.
    """
    if len(difference) == 0:
        return 1.0
    doubt = 1 / (len(difference) + 2)

    def cost(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        return (1 - doubt) * nll(difference, temperature) + doubt * nll(-difference, temperature)

    low, high, ratio = np.log(0.01), np.log(100.0), (np.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    for _ in range(80):
        if cost(a) <= cost(b):
            high, b = b, a
            a = high - ratio * (high - low)
        else:
            low, a = a, b
            b = low + ratio * (high - low)
    return float(np.exp((low + high) / 2))
