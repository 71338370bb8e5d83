"""What training an adapter took, beside what training all weights is counted to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from engine.stage.stage import Device
from training.hardware import flops, memory

if TYPE_CHECKING:
    from engine.stage.job import Job
    from training.models.lora_settings import Lora
    from training.models.precision_settings import Precision


class Adapting(Protocol):
    """What of a stage says what an adapter is trained on at once."""

    lora: Lora | None
    dtype: Precision
    recompute: bool | None
    batch: int
    micro_batch: int | None


def trainable_share(model: Any) -> float:
    """Trained weights as a share of all."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained) / sum(n for n, _ in counts)


def say_cost(stage: Adapting, job: Job, model: Any, length: int) -> None:
    """Say what an adapter took, trained on sequences of at most `length` tokens."""
    device = next(model.parameters()).device
    config = model.config.get_text_config().to_dict()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    line = (
        f"LoRA trains {trainable_share(model):.2%} of the weights ({trained:,}, {memory.gibibytes(4 * trained)} on disk); "
        f"peak memory {memory.gibibytes(flops.peak_memory(device))}"
    )
    here = Device(str(device), 0, device.type == "cuda")
    counted: list[float] = []
    for lora in (stage.lora, None):
        way = memory.fine_tuning(config, here, lora, length, stage.dtype, stage.recompute)
        if way:
            rows = way.pass_rows(stage.batch, 1, stage.micro_batch)
            counted.append(way.memory(rows, rows < stage.batch).total)
    if counted:
        line += f"; counted: {memory.gibibytes(counted[0])}, full training {memory.gibibytes(counted[1])}"
    job.say(line)
