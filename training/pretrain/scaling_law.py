"""What a larger pretraining run will give, foretold from small ones: L(C) = E + A / C^alpha.

C is compute in FLOPs, where each model is trained on about as many tokens a parameter. Kaplan et al. (2020, arXiv:2001.08361, eq. 1.3) have
this form without E; Hoffmann et al. (2022, arXiv:2203.15556, eq. 2 and 10) add what no model can foresee, and their two terms, of parameters
and of tokens, fall along such a path as one power of C as long as their exponents are near each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.statistics.bootstrap import Interval

LEAST_SIZES = 4  # three numbers are fitted, and one more tells how well
STARTS = (0.03, 0.1, 0.3, 1.0)  # exponents from which the fit begins
WIDEST = 10.0  # an interval ends at the latest where a loss is so many times what is foretold
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScalingLaw:
    """L(C) = floor + (C / reference)^-exponent * excess, in the units of the losses.

    Attributes:
        floor: E, at least 0.
        excess: what is above the floor at `reference` FLOPs: A / reference^exponent.
        deviation: of the logarithm of a run's loss around the law, estimated from what the fit leaves; about a relative error.
        compute, losses: what it was fitted to.
    """

    floor: float
    excess: float
    exponent: float
    reference: float
    deviation: float
    compute: tuple[float, ...]
    losses: tuple[float, ...]

    def __call__(self, compute: float) -> float:
        """The loss that is to be expected of so many FLOPs."""
        return float(
            _curve(np.array([self.floor, self.excess, self.exponent]), np.array([compute / self.reference]))[0]
        )

    def foretold(self, compute: float) -> Interval:
        """The loss of one more run, of so many FLOPs, with the bounds of its 95 % interval.

        In the interval are the losses with which that run would fit to the law of all: refitted with it, the squares of what is left grow by no
        more than t^2 times their mean (with a linear law that is Student's prediction interval; Bates and Watts 1988, 6.1). It
        has noise of the run and doubt about all three numbers in it; not that the law itself may end.
        """
        from scipy.optimize import brentq
        from scipy.special import stdtrit

        value = self(compute)
        freedom = len(self.losses) - 3
        if self.deviation < 1e-9:
            return Interval(value, value, value)
        ratios, logs = np.array([*self.compute, compute]) / self.reference, np.log(self.losses)
        allowed = (float(stdtrit(freedom, 0.975)) * self.deviation) ** 2
        start = np.array([self.floor, self.excess, self.exponent])
        before = _left(start, ratios[:-1], logs)

        def beyond(far: float) -> float:
            """How much more than allowed is left where the run's loss is so far off, by its logarithm."""
            told = np.append(logs, np.log(value) + far)
            return _fit(ratios, told, [start])[1] - before - allowed

        edge = float(np.log(WIDEST))
        low, high = (
            sign * edge if beyond(sign * edge) <= 0 else float(brentq(beyond, 0, sign * edge, xtol=1e-5))  # pyright: ignore[reportArgumentType]
            for sign in (-1, 1)
        )
        return Interval(value, value * float(np.exp(low)), value * float(np.exp(high)))


def fit(compute: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """The law by least squares of the logarithms of losses.

    Args:
        compute: FLOPs of each run, several seeds of one size as several runs.
        losses: of held-out text, in any unit.

    Raises:
        UserError: there are fewer than four sizes.
    """
    if len(set(compute)) < LEAST_SIZES:
        raise UserError(
            f"a scaling law has three numbers: it takes runs of at least {LEAST_SIZES} sizes, and there are {len(set(compute))}. "
            "`flywheel sweep RECIPE --over base.size.depth=1,2,3,4` makes them."
        )
    reference = float(np.exp(np.log(compute).mean()))
    ratios, logs = np.array(compute) / reference, np.log(losses)
    starts: list[Array] = []
    for exponent in STARTS:
        # For one exponent the law is a line in C^-exponent.
        falling = ratios**-exponent
        slope, floor = np.polyfit(falling, np.array(losses), 1)
        starts.append(np.array([max(floor, 0.0), max(slope, 1e-6), exponent]))
    numbers, left = _fit(ratios, logs, starts)
    freedom = len(losses) - 3
    floor, excess, exponent = numbers.tolist()
    return ScalingLaw(floor, excess, exponent, reference, float(np.sqrt(left / freedom)), tuple(compute), tuple(losses))


def _curve(numbers: Array, ratios: Array) -> Array:
    floor, excess, exponent = numbers
    return floor + excess * ratios**-exponent


def _left(numbers: Array, ratios: Array, logs: Array) -> float:
    return float(((np.log(_curve(numbers, ratios)) - logs) ** 2).sum())


def _fit(ratios: Array, logs: Array, starts: list[Array]) -> tuple[Array, float]:
    """The numbers that leave least, and what they leave."""
    from scipy.optimize import least_squares

    def off(numbers: Array) -> Array:
        return np.log(_curve(numbers, ratios)) - logs

    found = [
        least_squares(off, np.maximum(start, [0.0, 1e-9, 1e-3]), bounds=([0.0, 1e-9, 1e-3], [np.inf, np.inf, 5.0]),
                      x_scale=[1.0, 1.0, 0.1], xtol=1e-12, ftol=1e-12, gtol=1e-12)
        for start in starts
    ]  # fmt: skip
    best = min(found, key=lambda one: one.cost)
    return np.asarray(best.x, np.float64), 2 * float(best.cost)
