"""What training an adapter took, beside what training all weights is counted to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from training.hardware import flops, memory

if TYPE_CHECKING:
    from engine.stage.job import Job


def trainable_share(model: Any) -> float:
    """Trained weights as a share of all."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained) / sum(n for n, _ in counts)


def say_cost(job: Job, model: Any, batch: int, length: int) -> None:
    """Say what an adapter took, trained on `batch` sequences of `length` tokens at once."""
    device = next(model.parameters()).device
    config = model.config.get_text_config()
    shape = memory.shape_of(config.to_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    line = (
        f"LoRA trains {trainable_share(model):.2%} of the weights ({trained:,}, {memory.gibibytes(4 * trained)} on disk); "
        f"peak memory {memory.gibibytes(flops.peak_memory(device))}"
    )
    if shape:
        ours, full = (
            memory.FineTuning(shape, length, method, gpu=torch.cuda.is_available()).memory(batch).total
            for method in ("lora", "full")
        )
        line += f"; counted: {memory.gibibytes(ours)}, full training {memory.gibibytes(full)}"
    job.say(line)
