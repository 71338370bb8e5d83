"""What is changed in other libraries.

- torch 2.11 to 2.13, `torch.optim.Muon`: it orthogonalises in bfloat16, which a processor without units for it multiplies
  element by element; with AVX2 alone that takes seventeen times as long, and the optimizer has no setting for it. It can go
  once torch has one (`tests/training/pretrain/test_optim.py` names what is replaced).
- The same: of a matrix that FSDP2 has split each of its fifteen products is a joint one, and rounded in parts. A whole one is put
  together for it, once.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from typing import Any

import torch

from training.loops.distributed import own_part, whole


def muon_in_float32() -> None:
    """Have torch's Muon orthogonalise in float32, in this process from now on."""
    muon: Any = import_module("torch.optim._muon")
    muon._zeropower_via_newtonschulz = orthogonalised


def muon_of_whole_matrices() -> None:
    """Have torch's Muon orthogonalise whole matrices where they are split, in this process from now on.

    What comes out is what one process finds, to the bit, for the same gradient. Each process puts a matrix together, one at a time, does as much as it would with a copy of the model, and keeps its part: momentum and
    weights stay split.
    """
    muon: Any = import_module("torch.optim._muon")
    plain = muon._zeropower_via_newtonschulz
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def of_whole(gradient_RC: torch.Tensor, *settings: Any) -> torch.Tensor:
        return own_part(plain(whole(gradient_RC), *settings), gradient_RC)

    muon._zeropower_via_newtonschulz = of_whole


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
