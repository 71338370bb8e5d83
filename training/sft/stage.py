"""`sft`: from a base model and conversations to an assistant, with TRL's SFTTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.stage.drawing import Curves
from engine.stage.stage import Device, NotIdentity, Stage, port
from training.hardware import allocator, memory
from training.loops.processes_settings import (
    Processes,
    Sharding,
    check_processes,
    largest_part,
    split_over,
)
from training.loops.tracking_settings import ReportTo
from training.models.lora_settings import Lora, output_kind
from training.models.precision_settings import Dtype, Recompute

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


class Sft(Stage):
    """Fine-tune a model on conversations; the loss counts assistant turns only."""

    takes = {"model": port("Model", "Adapter"), "conversations": port("Conversation", many=True)}
    gives = "Model"
    phase = "training"
    environment = allocator.ENVIRONMENT
    work = "training.sft.work:fine_tune"
    drawings = (Curves(("loss", "entropy"), {"loss": "nats a token", "entropy": "nats a token"}, "optimizer step"),)
    random = True
    version = 4

    epochs: float = Field(1.0, gt=0, description="Passes over the conversations.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps, instead of `epochs`.")
    batch: int = Field(16, ge=1, description="Conversations (packed: sequences) in one optimizer step.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="In memory at once, on each device; as many as keep a gibibyte (on a GPU: four) (packed: 1) if left out.",
    )
    max_length: int = Field(1024, ge=8, description="Tokens of a conversation; what is beyond is cut off.")
    reasoning: Literal["learn", "keep", "drop"] = Field(
        "learn",
        description="What becomes of a thought before an answer (`reasoning_content`, or a `<think>` block): it is learnt with "
        "the answer; kept where the chat template puts it, and not learnt; or dropped.",
    )
    packing: bool = Field(False, description="Put several conversations into one sequence, masked from each other.")

    lr: float | None = Field(None, gt=0, description="Peak learning rate; 2e-5, with LoRA 2e-4, if left out.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Of the learning rate after the warmup."
    )
    warmup: float = Field(0.03, ge=0, le=1, description="Share of the steps.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    clip: float = Field(1.0, gt=0, description="Greatest norm of the gradient.")
    neftune: float | None = Field(None, gt=0, description="Noise on the embeddings (arXiv:2310.05914).")
    lora: Lora | None = Field(None, description="Train an adapter instead of all weights.")

    dtype: Dtype = "auto"
    recompute: Recompute = None
    checkpoint_every: Annotated[int, NotIdentity] = Field(100, ge=1, description="Steps.")
    processes: Processes = None
    sharding: Sharding = "replicate"
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Sft:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        check_processes(self.processes, self.sharding, self.lora, self.batch, "conversations")
        return self

    @property
    def at_once(self) -> int:
        """Packed sequences in memory at once, on each device."""
        return self.micro_batch or 1

    def output(self, given: dict[str, list[str]]) -> str:
        return output_kind(self.lora)

    def check(self, known: Preflight) -> None:
        from training.sft.conversations_check import check

        check(known, self.reasoning)

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        return memory.forecast_fine_tuning(
            given["model"][0], device, self.lora, self.max_length, largest_part(self.batch, self.processes),
            self.at_once if self.packing else self.micro_batch, self.dtype, self.recompute,
            processes=split_over(self.processes, self.sharding), shared_by=self.processes or 1,
        )  # fmt: skip
