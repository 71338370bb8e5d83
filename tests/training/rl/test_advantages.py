"""GAE against its definition written out as sums (Schulman et al. 2016, eq. 16), in float64."""

import numpy as np
import pytest
import torch

from training.rl.advantages import advantages, to_go, whiten

GAMMA = 0.9


def rollouts(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, size=16)
    mask = torch.tensor(np.arange(8)[None] < lengths[:, None])
    return torch.tensor(random.normal(size=(16, 8))), torch.tensor(random.normal(size=(16, 8))), mask


def by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """sum_l (gamma lam)^l delta_{t+l}, with V = 0 after the last step."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantages_are_the_sum_of_discounted_td_errors(lam: float) -> None:
    rewards, values, mask = rollouts()
    found, returns = advantages(rewards, values, mask, GAMMA, lam)
    for b in range(len(rewards)):
        n = int(mask[b].sum())
        expected = by_definition(rewards[b, :n].tolist(), values[b, :n].tolist(), GAMMA, lam)
        assert found[b, :n].tolist() == pytest.approx(expected, abs=1e-14)
        assert returns[b, :n].tolist() == pytest.approx((found[b, :n] + values[b, :n]).tolist(), abs=1e-15)
        assert (found[b, n:] == 0).all() and (returns[b, n:] == 0).all()


def test_lambda_one_is_the_return_minus_the_value() -> None:
    rewards, values, mask = rollouts(1)
    found, returns = advantages(rewards, values, mask, GAMMA, 1.0)
    sums = to_go(torch.where(mask, rewards, 0.0), GAMMA)
    assert (sums[~mask] == 0).all()
    for b in range(len(rewards)):
        n = int(mask[b].sum())
        for t in range(n):
            discounted = sum(GAMMA ** (k - t) * rewards[b, k].item() for k in range(t, n))
            assert found[b, t].item() == pytest.approx(discounted - values[b, t].item(), abs=1e-14)
            assert returns[b, t].item() == pytest.approx(discounted, abs=1e-14)
            assert sums[b, t].item() == pytest.approx(discounted, abs=1e-14)


def test_padding_changes_nothing_whatever_stands_in_it() -> None:
    rewards, values, mask = rollouts(2)
    found, returns = advantages(rewards, values, mask, GAMMA, 0.95)
    junk = torch.full((16, 5), float("nan"), dtype=torch.float64)
    wide = (
        torch.cat([torch.where(mask, rewards, torch.nan), junk], 1),
        torch.cat([torch.where(mask, values, 1e9), junk], 1),
    )
    padded, padded_returns = advantages(*wide, torch.cat([mask, torch.zeros(16, 5, dtype=torch.bool)], 1), GAMMA, 0.95)
    assert torch.equal(padded[:, :8], found) and torch.equal(padded_returns[:, :8], returns)


def test_whitening_gives_zero_mean_and_unit_variance_over_the_mask() -> None:
    x, _, mask = rollouts(3)
    white = whiten(x, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[mask].std().item() == pytest.approx(1, abs=1e-6)
    assert (white[~mask] == 0).all()
    kept = whiten(x, mask, shift_mean=False)
    assert kept[mask].mean().item() == pytest.approx(x[mask].mean().item(), abs=1e-12)


def test_whitening_a_constant_gives_zeros_not_noise() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    assert (whiten(torch.full((4, 4), 0.1), mask) == 0).all()
    assert (whiten(torch.full((1, 1), 3.0), mask[:1, :1]) == 0).all()
    tiny = torch.tensor([[1e-7, 3e-7]])
    assert whiten(tiny, torch.ones(1, 2, dtype=torch.bool))[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
