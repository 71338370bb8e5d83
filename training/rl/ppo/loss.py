"""PPO's formulas, from what models said about tokens to a loss (`training.rl.ppo.stage` has the algorithm and its papers).

Shapes: B rollouts, R tokens of the longest response. All _BR are 0 where masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from training.models.answers import EncodedAnswer
from training.models.logprobs import Forward
from training.rl import advantages, kl
from training.rl.rollouts import Rollout


class Settings(Protocol):
    """The dials of the formulas, as a `Ppo` has them and describes them."""

    clip: float
    clip_value: float
    value_weight: float
    entropy_weight: float
    gamma: float
    lam: float
    kl_estimator: Literal["k1", "k3"]
    whiten_rewards: bool
    whiten_advantages: bool
    correction: float


@dataclass(frozen=True)
class Experience:
    """Rollouts with everything that stays fixed while the policy learns from them.

    Attributes:
        logprobs_BR, reference_BR, sampler_BR: log-probabilities by pi_old, the reference and the sampler, in nats.
        weights_BR: min(pi_old / pi_sampler, C).
        scale: root mean square of the returns, the unit of the value loss.
    """

    answers: list[EncodedAnswer]
    mask_BR: Tensor
    logprobs_BR: Tensor
    reference_BR: Tensor
    sampler_BR: Tensor
    weights_BR: Tensor
    values_BR: Tensor
    entropy_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor
    scale: float

    def of(self, rows: np.ndarray) -> Experience:
        """These rollouts alone, as wide as the longest of them."""
        answers = [self.answers[i] for i in rows]
        width = max(len(answer.response) for answer in answers)
        rows_B = torch.as_tensor(rows, device=self.mask_BR.device)
        cut = {f.name: getattr(self, f.name)[rows_B, :width] for f in fields(self) if f.name.endswith("_BR")}
        return replace(self, answers=answers, **cut)

    @cached_property
    def kl(self) -> float:
        """KL to the reference in nats an answer: the mean over rollouts of the sum of k1, which has no bias."""
        return float((self.logprobs_BR - self.reference_BR).sum(1).mean())


def experience(
    rollouts: Sequence[Rollout],
    mask_BR: Tensor,
    logprobs_BR: Tensor,
    reference_BR: Tensor,
    values_BR: Tensor,
    entropy_BR: Tensor,
    rewards_BR: Tensor,
    settings: Settings,
) -> Experience:
    """What the rollouts were worth, token by token, under the policy and the values they were sampled with."""
    flat = torch.cat([torch.tensor(rollout.logprobs).float() for rollout in rollouts]).to(mask_BR.device)
    sampler_BR = torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(mask_BR, flat)
    advantages_BR, returns_BR = advantages.advantages(rewards_BR, values_BR, mask_BR, settings.gamma, settings.lam)
    if settings.whiten_advantages:
        advantages_BR = advantages.whiten(advantages_BR, mask_BR)
    weights_BR = torch.exp(logprobs_BR - sampler_BR).clamp(max=settings.correction)
    scale = max(float((returns_BR[mask_BR] ** 2).mean().sqrt()), 1e-6)
    return Experience(
        [rollout.answer for rollout in rollouts], mask_BR, logprobs_BR, reference_BR, sampler_BR, weights_BR, values_BR,
        entropy_BR, advantages_BR, returns_BR, scale,
    )  # fmt: skip


def rewards(
    mask_BR: Tensor, logprobs_BR: Tensor, reference_BR: Tensor, score_B: Tensor, beta: float, settings: Settings
) -> Tensor:
    """What each token is rewarded with."""
    kl_BR = torch.where(mask_BR, kl.estimate(logprobs_BR, reference_BR, settings.kl_estimator), 0.0)
    rewards_BR = token_rewards(kl_BR, score_B, mask_BR, beta)
    return advantages.whiten(rewards_BR, mask_BR, shift_mean=False) if settings.whiten_rewards else rewards_BR


def token_rewards(kl_BR: Tensor, score_B: Tensor, mask_BR: Tensor, beta: float) -> Tensor:
    """-beta KL for every token, and the score on the last one: the end of the turn, not the padding after it (Ziegler et
    al. 2019, eq. 2)."""
    rewards_BR = torch.where(mask_BR, -beta * kl_BR, 0.0)
    rewards_BR[torch.arange(len(mask_BR), device=mask_BR.device), mask_BR.sum(1) - 1] += score_B
    return rewards_BR


def loss(
    now: Forward, values_BR: Tensor | None, old: Experience, settings: Settings
) -> tuple[Tensor, dict[str, float]]:
    """The loss summed over tokens, and sums of what it is made of.

    Args:
        now: what the policy says about the tokens of `old`, with gradients. Its entropy is missing where it has no weight.
        values_BR: what the critic says about them; None where nobody trains one.
    """
    mask_BR = old.mask_BR

    def total(x_BR: Tensor) -> Tensor:
        return torch.where(mask_BR, x_BR, 0.0).sum()

    # PPO, eq. 7
    ratio_BR = torch.where(mask_BR, now.logprobs_BR - old.logprobs_BR, 0.0).exp()
    gain_BR = ratio_BR * old.advantages_BR
    clipped_BR = ratio_BR.clamp(1 - settings.clip, 1 + settings.clip) * old.advantages_BR
    policy_loss = -total(torch.minimum(gain_BR, clipped_BR) * old.weights_BR)
    summed = policy_loss
    parts: dict[str, Tensor] = {}
    if values_BR is not None:
        # PPO, eq. 9, clipped as the policy is
        reach = settings.clip_value * old.scale
        near_BR = old.values_BR + (values_BR - old.values_BR).clamp(-reach, reach)
        error_BR = torch.maximum((values_BR - old.returns_BR) ** 2, (near_BR - old.returns_BR) ** 2)
        parts["value_loss"] = total(error_BR / (2 * old.scale**2))
        summed = summed + settings.value_weight * parts["value_loss"]
    if now.entropy_BR is not None:
        summed = summed - settings.entropy_weight * total(now.entropy_BR)
    with torch.no_grad():
        parts |= {
            "policy_loss": policy_loss,
            "clip_fraction": total((gain_BR > clipped_BR).float()),
            # KL(pi_old || pi) by k3: the samples are pi_old's
            "step_kl": total(kl.estimate(old.logprobs_BR, now.logprobs_BR, "k3")),
        }
    return summed, {name: value.item() for name, value in parts.items()}


def describe(rollouts: Sequence[Rollout], scores: np.ndarray, old: Experience) -> dict[str, float]:
    """The curves of an iteration that do not depend on what is learnt from it."""
    mask_BR = old.mask_BR
    returns, values = old.returns_BR[mask_BR], old.values_BR[mask_BR]
    spread = float(returns.var(correction=0))
    gap = (old.logprobs_BR - old.sampler_BR)[mask_BR].abs()
    return {
        "score": float(scores.mean()),
        "score_std": float(scores.std()),
        "kl": old.kl,
        "entropy": float(old.entropy_BR[mask_BR].mean()),
        "length": float(mask_BR.sum(1).float().mean()),
        "ended": float(np.mean([rollout.ended for rollout in rollouts])),
        "distinct": len({(r.question.id, tuple(r.token_ids)) for r in rollouts}) / len(rollouts),
        # 1: the critic foresees every return; 0: it might as well say their mean; below 0: it misleads
        "explained_variance": 1 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0,
        "sampler_gap": float(gap.mean()),
        "sampler_gap_max": float(gap.max()),
    }
