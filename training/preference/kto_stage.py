"""`kto`: policy and answers that are good or bad, each for itself -> policy (Ethayarajh et al. 2024, eq. 7), on TRL.

    loss = lambda_y - lambda_y sigmoid(+-(beta log pi(y|x)/pi_ref(y|x) - z0)),   + for good answers, - for bad ones

z0 estimates the KL to the reference from answers paired with another prompt of the batch, so that a thumb up or down is
enough. Pairs are taken apart: the chosen answer is good, the rejected one bad.

The reference is always handed to TRL as a model of its own, for the reason given in `training.preference.dpo_stage`.
"""

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


class Kto(Stage):
    """Train a policy on answers that are marked good or bad."""

    takes = {
        "policy": port("Model", "Adapter"),
        "preferences": port("Preference", many=True, optional=True),
        "candidates": port("Candidate", many=True, optional=True),
        "verdicts": port("Verdict", many=True, optional=True),
        "reference": port("Model", "Adapter", optional=True),
    }
    gives = "Model"
    phase = "training"
    environment = allocator.ENVIRONMENT
    work = "training.preference.kto:train_on_marks"
    drawings = (Curves(("loss", "kl", "rewards/margins"), {"kl": "nats", "rewards/margins": "nats"}, "optimizer step"),)
    random = True
    version = 3

    metric: str | None = Field(None, description="Which of the `verdicts` says whether a candidate is good.")
    above: float = Field(0.5, description="A candidate is good if the verdict is greater than this.")
    beta: float = Field(0.1, gt=0, description="How strongly the policy is held to the reference.")
    loss: Literal["kto", "apo_zero_unpaired"] = Field("kto", description="KTO, or APO-zero without pairs.")
    good_weight: float | None = Field(
        None, gt=0, description="lambda of good answers; chosen so that both kinds weigh the same if left out."
    )
    bad_weight: float = Field(1.0, gt=0, description="lambda of bad answers.")
    epochs: int = Field(1, ge=1, description="Passes over the rows.")
    batch: int = Field(16, ge=2, description="Answers a step, at least 2: z0 needs another prompt's answer.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Answers in memory at once, on each device; as many as keep a gibibyte (on a GPU: four) if left out.",
    )
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer ones are left out.")
    held_out: float = Field(0.0, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    dtype: Dtype = "auto"
    recompute: Recompute = None
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")
    processes: Processes = None
    sharding: Sharding = "replicate"
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Kto:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        check_processes(self.processes, self.sharding, self.lora, self.batch, "answers")
        return self

    def output(self, given: dict[str, list[str]]) -> str:
        return output_kind(self.lora)

    def check(self, known: Preflight) -> None:
        from training.preference.answers_check import check

        check(known, "policy")

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        split = split_over(self.processes, self.sharding)
        return memory.forecast_fine_tuning(
            given["policy"][0], device, self.lora, self.max_length, largest_part(self.batch, self.processes), self.micro_batch, self.dtype,
            self.recompute, references=int(not self.lora) / split, processes=split, shared_by=self.processes or 1,
            unlearnt=int(self.loss == "kto"),  # the answer that z0 is estimated from
        )  # fmt: skip
