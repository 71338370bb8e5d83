"""Values that nobody has to train: what the other answers brought, as a linear function of the policy's own hidden states.

A critic's head that learns by the policy's small steps stays where it began for as long as a fine-tuning takes. Its best weights
are a linear regression, and known at once: the baseline of Duan et al. 2016 (arXiv:1604.06778, section 5), here with the hidden states
as features. Answers are dealt into folds, and each fold's values are fitted to the others alone, so that no value has seen the luck
of its own answer. How much the weights are shrunk is what foretells the held-out folds best.

Shapes: N tokens of this process, F features, K folds, S shrinkages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.loops.distributed import total

FOLDS = 4
WIDEST = 1024  # features; of a wider state every second channel, or third, ...
SHRINKAGES = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
    100.0,
    float("inf"),
)  # of standardised features; the last is the mean alone


def features(hidden: Tensor) -> Tensor:
    """The channels that are fitted to, of hidden states (..., D)."""
    return hidden[..., :: -(-hidden.shape[-1] // WIDEST)]


@dataclass(frozen=True)
class Sums:
    """What a regression needs to know of some tokens."""

    count: Tensor
    x_F: Tensor
    y: Tensor
    xx_FF: Tensor
    xy_F: Tensor

    @classmethod
    def of(cls, x_NF: Tensor, y_N: Tensor) -> Sums:
        """Over all processes."""
        count = torch.tensor(float(len(y_N)), dtype=torch.float64, device=x_NF.device)
        return cls(*(total(part) for part in (count, x_NF.sum(0), y_N.sum(), x_NF.T @ x_NF, x_NF.T @ y_N)))


def fitted_values(x_NF: Tensor, targets_N: Tensor, answers_N: Tensor) -> Tensor:
    """The values of this process's tokens, in float32.

    Args:
        x_NF: features of the state in which each token was chosen.
        targets_N: the rewards from each token on.
        answers_N: the number of the answer that each token belongs to, counted over all processes; two answers at least.
    """
    x_NF, y_N, fold_N = x_NF.double(), targets_N.double(), answers_N % FOLDS
    own = [fold_N == fold for fold in range(FOLDS)]
    sums = [Sums.of(x_NF[rows], y_N[rows]) for rows in own]
    values_NS = y_N.new_zeros(len(y_N), len(SHRINKAGES))
    for fold, rows in enumerate(own):
        others = [known for other, known in enumerate(sums) if other != fold]
        values_NS[rows] = predicted(x_NF[rows], others)
    errors_S = total((values_NS - y_N[:, None]).square().sum(0))
    return values_NS[:, int(errors_S.argmin())].float()


def predicted(x_NF: Tensor, known: list[Sums]) -> Tensor:
    """(N, S): ridge regression on what is known, by every shrinkage.

    Features count in their standard deviations; the mean is not shrunk.
    """
    count, x_F, y, xx_FF, xy_F = (
        torch.stack([getattr(sums, name) for sums in known]).sum(0) for name in ("count", "x_F", "y", "xx_FF", "xy_F")
    )
    count = count.clamp(min=1)
    mean_F, mean = x_F / count, y / count
    covariance_FF = xx_FF / count - torch.outer(mean_F, mean_F)
    deviation_F = covariance_FF.diagonal().clamp(min=0).sqrt()
    # A channel that is the same everywhere but for rounding would be rounding alone, blown up.
    varies_F = deviation_F > 1e-5 * mean_F.abs().clamp(min=1e-12)
    scale_F = torch.where(varies_F, 1 / torch.where(varies_F, deviation_F, 1.0), 0.0)
    power_F, axes_FF = torch.linalg.eigh(covariance_FF * torch.outer(scale_F, scale_F))
    slope_F = axes_FF.T @ ((xy_F / count - mean_F * mean) * scale_F)
    shrunk_FS = torch.stack([slope_F / (power_F.clamp(min=0) + by) for by in SHRINKAGES], 1)
    return mean + ((x_NF - mean_F) * scale_F) @ (axes_FF @ shrunk_FS)
