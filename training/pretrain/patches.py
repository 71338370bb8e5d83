"""What is changed in other libraries.

- torch 2.11 to 2.13, `torch.optim.Muon`: it orthogonalises in bfloat16, which a processor without units for it multiplies
  element by element; with AVX2 alone that takes seventeen times as long, and the optimizer has no setting for it. It can go
  once torch has one (`tests/training/pretrain/test_optim.py` names what is replaced).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch


def muon_in_float32() -> None:
    """Have torch's Muon orthogonalise in float32, in this process from now on."""
    muon: Any = import_module("torch.optim._muon")
    muon._zeropower_via_newtonschulz = orthogonalised


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
