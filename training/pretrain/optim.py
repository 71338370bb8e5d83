"""Optimizers.

Muon (Jordan et al. 2024) orthogonalises the momentum of each weight matrix; embeddings, head and norms stay with AdamW.
torch's implementation is used, with the update scaled to the root mean square of AdamW's (Liu et al. 2025,
arXiv:2502.16982, eq. 4), so that one learning rate serves both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

OptimizerName = Literal["adamw", "muon"]


def build(
    model: nn.Module, name: OptimizerName, lr: float, weight_decay: float, betas: tuple[float, float], momentum: float
) -> list[torch.optim.Optimizer]:
    """Optimizers over all parameters of a model. Vectors (norms, biases) are not decayed.

    Each group's `share` of the scheduled learning rate is 1. Muon takes the matrices inside the layers.
    """
    import torch

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
        if not has_bfloat16_units():
            # torch's optimizer has no setting for it
            muon: Any = import_module("torch.optim._muon")
            muon._zeropower_via_newtonschulz = orthogonalised
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def orthogonalised(
    gradient_RC: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, or nearly so, by Newton and Schulz's iteration, in float32.

    torch's goes by bfloat16, which a processor without units for it multiplies element by element: with AVX2 alone that takes
    seventeen times as long. (R, C) is a matrix of any shape; `coefficients` are those of the quintic, Jordan et al. 2024.
    """
    a, b, c = coefficients
    tall = gradient_RC.shape[0] > gradient_RC.shape[1]
    x = gradient_RC.float().T if tall else gradient_RC.float()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def has_bfloat16_units() -> bool:
    """Whether bfloat16 products are faster than float32 ones here: a recent GPU, or a CPU with AVX512-BF16 or AMX."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
