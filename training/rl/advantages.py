"""Generalised advantage estimation (Schulman et al. 2016, "High-dimensional continuous control using GAE").

Shapes: B rollouts, R tokens of the longest response. A step is one response token; everything after a rollout's last
token is masked, and what stands there changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(
    rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages (eq. 16) and the returns that the value function is fitted to.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t) (eq. 10), A_t = sum_l (gamma lam)^l delta_{t+l} (eq. 16), return = A + V.
    An episode ends at the rollout's last token, so V after it is 0: a rollout is worth what its reward said.

    Args:
        rewards_BR: reward received for each token.
        values_BR: V(s_t), the estimate before the token is chosen.
        mask_BR: bool, True on response tokens; a prefix of each row.
        gamma: discount, in [0, 1].
        lam: 0 is the one-step TD error (low variance), 1 is return minus value (no bias).

    Returns:
        (advantages_BR, returns_BR), both 0 where masked.
    """
    rewards_BR = torch.where(mask_BR, rewards_BR, 0.0)
    values_BR = torch.where(mask_BR, values_BR, 0.0)
    advantages_BR = torch.zeros_like(rewards_BR)
    next_advantage_B = torch.zeros_like(rewards_BR[:, 0])
    next_value_B = torch.zeros_like(next_advantage_B)
    for t in reversed(range(rewards_BR.shape[1])):
        delta_B = rewards_BR[:, t] + gamma * next_value_B - values_BR[:, t]
        # masked steps are zero already, so what is carried back into the last real token is exactly zero
        next_advantage_B = torch.where(mask_BR[:, t], delta_B + gamma * lam * next_advantage_B, 0.0)
        next_value_B = values_BR[:, t]
        advantages_BR[:, t] = next_advantage_B
    return advantages_BR, torch.where(mask_BR, advantages_BR + values_BR, 0.0)


def to_go(rewards_BR: Tensor, gamma: float = 1.0) -> Tensor:
    """The discounted rewards from each token on: sum_l gamma^l r_{t+l}. 0 where masked, as the rewards are."""
    sums_BR = rewards_BR.clone()
    for t in reversed(range(rewards_BR.shape[1] - 1)):
        sums_BR[:, t] += gamma * sums_BR[:, t + 1]
    return sums_BR


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance (and zero mean) over the unmasked entries; masked ones become 0.

    Entries that differ by no more than rounding come out as zeros (or as their mean): scaling them up would turn
    rounding into signal.
    """
    x = torch.where(mask, x, 0.0)
    count = mask.sum()
    mean = x.sum() / count
    deviation = torch.sqrt(torch.where(mask, (x - mean) ** 2, 0.0).sum() / (count - 1).clamp(min=1))
    constant = deviation <= 1e-6 * x.abs().max()
    scaled = torch.where(constant, 0.0, (x - mean) / torch.where(constant, 1.0, deviation))
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)
