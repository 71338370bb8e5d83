"""Optimizers and learning-rate schedules.

Muon (Jordan et al. 2024) orthogonalises the momentum of each weight matrix; embeddings, head and norms stay with AdamW.
torch's implementation is used, with the update scaled to the root mean square of AdamW's (Liu et al. 2025,
arXiv:2502.16982, eq. 4), so that one learning rate serves both.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["cosine", "wsd", "constant"]


def factor(step: int, steps: int, kind: ScheduleName, warmup: int, decay: float, final: float) -> float:
    """The share of the peak learning rate at step [0, steps).

    Warm-up is linear and reaches 1 at step `warmup - 1`. Then

    - `cosine` falls along half a cosine to `final` at the last step (Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5);
    - `wsd` stays at 1 and falls in a straight line over the last `decay` share of the steps (Hu et al. 2024,
      arXiv:2404.06395, eq. 1);
    - `constant` stays at 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        done = (step - warmup + 1) / max(1, steps - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    falling = max(1, round(decay * steps))
    left = steps - step - 1
    return 1.0 if left >= falling else final + (1 - final) * left / falling


def build(
    model: nn.Module, name: OptimizerName, lr: float, weight_decay: float, betas: tuple[float, float], momentum: float
) -> list[torch.optim.Optimizer]:
    """Optimizers over all parameters of a model. Vectors (norms, biases) are not decayed.

    Each group's `share` of the scheduled learning rate is 1. Muon takes the matrices inside the layers.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for path, parameter in model.named_parameters():
        inside = ".layers." in path
        (vectors if parameter.ndim < 2 else matrices if inside else tables).append(parameter)
    use_muon = name == "muon"
    adam_groups = [
        {"params": tables if use_muon else [*tables, *matrices], "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam_groups, lr=lr, betas=betas, fused=True)]
    if use_muon:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers
