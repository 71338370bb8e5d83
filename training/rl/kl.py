"""Estimating KL(policy || reference) from samples of the policy, and steering it.

The estimators are Schulman's (2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html), with
log r = log reference(x) - log policy(x), x drawn from the policy:

    k1 = -log r              no bias, high variance, may be negative
    k2 = (log r)^2 / 2       low variance, biased (second order in the distance)
    k3 = (r - 1) - log r     no bias, low variance, never negative

Over a whole sequence, sum_t k1 estimates the KL of the two sequence distributions without bias. sum_t k3 does as well:
each term is an unbiased estimate of that step's conditional KL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """KL estimate for each sampled token, in nats, in the shape of the inputs.

    Args:
        logprobs: log policy(x) of tokens drawn from the policy.
        reference_logprobs: log reference(x) of the same tokens.
    """
    log_r = reference_logprobs - logprobs
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    return log_r.expm1() - log_r


@dataclass
class Controller:
    """The weight of the KL penalty: fixed, or steered so that the KL of a rollout approaches a target.

    The adaptive rule is Ziegler et al. (2019, "Fine-tuning language models from human preferences", section 2.2):
    e = clip((KL - target) / target, -0.2, 0.2); beta <- beta (1 + gain e n), with n the number of rollouts.

    Attributes:
        beta: reward given up per nat.
        target: nats a rollout; None keeps `beta` as it is.
        gain: K_beta, per rollout.
    """

    beta: float
    target: float | None = None
    gain: float = 0.1 / 256

    def update(self, kl: float, rollouts: int) -> None:
        """Move `beta` after a batch of this many rollouts with this mean KL."""
        if self.target is not None:
            error = min(max((kl - self.target) / self.target, -0.2), 0.2)
            self.beta *= 1 + self.gain * error * rollouts


def best_of_n(n: int) -> float:
    """An upper bound, in nats, on the KL of the best of n answers to the policy they come from: log n - (n - 1)/n.

    Exact where no two answers are equal (Stiennon et al. 2020, appendix G.3; as a bound, Beirami et al. 2024, theorem 1).
    """
    return math.log(n) - (n - 1) / n
