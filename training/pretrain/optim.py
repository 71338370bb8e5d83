"""Optimizers.

Muon (Jordan et al. 2024) orthogonalises the momentum of each weight matrix; embeddings, head and norms stay with AdamW.
torch's implementation is used, with the update scaled to the root mean square of AdamW's (Liu et al. 2025,
arXiv:2502.16982, eq. 4), so that one learning rate serves both. `normuon` is our own (`training.pretrain.normuon`).
"""

from __future__ import annotations

import torch
from torch import nn

from engine.errors import UserError
from training.hardware.bfloat16 import has_bfloat16_units
from training.loops.distributed import is_split
from training.pretrain.normuon import NorMuon
from training.pretrain.patches import muon_in_float32, muon_of_whole_matrices
from training.pretrain.stage import OptimizerName


def build(
    model: nn.Module, name: OptimizerName, lr: float, weight_decay: float, betas: tuple[float, float], momentum: float
) -> list[torch.optim.Optimizer]:
    """Optimizers over all parameters of a model. Vectors (norms, biases) are not decayed.

    Each group's `share` of the scheduled learning rate is 1. Muon takes the matrices inside the layers.

    Raises:
        UserError: there are none for it.
    """
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for path, parameter in model.named_parameters():
        inside = ".layers." in path
        (vectors if parameter.ndim < 2 else matrices if inside else tables).append(parameter)
    use_muon = name != "adamw"
    if use_muon and not matrices:
        raise UserError(f"`{name}` takes the matrices of `layers`, and this model has none by that name. Use `adamw`.")
    adam_groups = [
        {"params": tables if use_muon else [*tables, *matrices], "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam_groups, lr=lr, betas=betas, fused=True)]
    if name == "normuon":
        products = torch.bfloat16 if has_bfloat16_units() else torch.float32
        optimizers.append(NorMuon(matrices, lr, weight_decay, momentum, dtype=products))
    elif use_muon:
        if not has_bfloat16_units():
            muon_in_float32()
        if any(map(is_split, matrices)):
            muon_of_whole_matrices()
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers
