"""Model FLOPs utilisation: what a training step needs, and what this device can do, measured.

A data sheet's peak is not reached by any product, and a CPU seldom has one; so the peak is the fastest of some large
products in the same type on the same device, here and now.
"""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

from training.hardware.memory import Shape, matrix_weights

if TYPE_CHECKING:
    import torch


def by_token(config: Shape, length: int) -> float:
    """FLOPs that training on one token takes: 6 for each weight that is multiplied, and 12 L D T / 2 for causal attention
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Recomputed activations don't count."""
    products = matrix_weights(config) + config.vocab_size * config.hidden_size
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length
    return 6 * products + attention


def measured_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of the fastest of some products of square matrices."""
    import torch  # which counting has no need of

    gpu = device.type == "cuda"
    size = 8192 if gpu else 1024
    generator = torch.Generator(device).manual_seed(0)  # the training's own random state stays as it is
    a = torch.randn(size, size, device=device, generator=generator).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        if gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, a)
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: most that torch has held on this GPU, or most that this process has held."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
