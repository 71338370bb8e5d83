"""Pretraining on one NVIDIA GPU: model FLOPs utilisation of a 350M and a 1.3B Llama at 2,048 tokens in bfloat16.

    python -m benchmarks.gpu --json

The peak it is taken against is measured on the same device (the fastest of large bfloat16 products), not a data sheet's.
FLOPs by token: 6 N + 12 L D T / 2 for causal attention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from training.llama import Llama
from training.memory import parameters
from training.model_config import Size
from training.optim import build
from training.pretrain import initial_model

SIZES = {
    "350M": (Size.model_validate({"depth": 24, "width": 1024, "heads": 16}), 16),
    "1.3B": (Size.model_validate({"depth": 24, "width": 2048, "heads": 16}), 8),
}
LENGTH, VOCABULARY = 2048, 32_000


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The fastest of some calls, each waited for."""
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def peak() -> float:
    """FLOP/s of a bfloat16 product of 8,192 squared."""
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a, 20)


def measure(size: Size, batch: int, compiled: bool, measured_peak: float) -> dict[str, Any]:
    config = size.config("llama", VOCABULARY, LENGTH, 0, 0)
    torch.cuda.reset_peak_memory_stats()
    model: Llama = initial_model(config, 0, torch.bfloat16).cuda()
    forward: Any = torch.compile(model) if compiled else model
    (optimizer,) = build(model, "adamw", 1e-4, 0.1, (0.9, 0.95), 0.95)
    tokens_BT = torch.randint(0, VOCABULARY, (batch, LENGTH), device="cuda")

    def step() -> None:
        (forward(tokens_BT, tokens_BT) / tokens_BT.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    took = seconds(step, 10)
    flops = 6 * parameters(config) + 6 * config.num_hidden_layers * config.hidden_size * LENGTH
    return {
        "batch": batch,
        "compiled": compiled,
        "tokens_per_s": round(tokens_BT.numel() / took),
        "mfu": round(flops * tokens_BT.numel() / took / measured_peak, 4),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "there is no NVIDIA GPU here"}))
        return
    measured = peak()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "peak_tflops": round(measured / 1e12, 1),
    }
    for name, (size, batch) in SIZES.items():
        result[name] = [measure(size, batch, compiled, measured) for compiled in (False, True)]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
