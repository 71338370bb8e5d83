"""`reward`: preferences or rankings -> a reward model.

From pairs, by Bradley-Terry (Ouyang et al. 2022, "InstructGPT", eq. 1): the loss of a pair is
-log sigmoid(r_chosen - r_rejected - margin), the margin as in Llama 2 (Touvron et al. 2023, eq. 2). With `soft`, the
share of annotators who agreed is the label instead of 1. An ensemble is `heads` heads on one backbone, each on its own
bootstrap sample of the pairs.

From rankings, by Plackett-Luce over whole lists (`training.reward.list_loss`), each weighted by the reliability of the
annotator who made it: as `reliability` says, or as the `preferences` made from these rankings have found it.

With `objectives` (accuracy, helpfulness, safety), each has preferences and heads of its own on the shared backbone, and
the reward is the weighted sum of what they say, each in the units of `normalise`.
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
from training.models.lora_settings import Lora
from training.models.precision_settings import Dtype, Recompute

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


class Reward(Stage):
    """Train a model that scores answers the way people rank them."""

    takes = {
        "model": port("Model"),
        "preferences": port("Preference", many=True, optional=True, labelled=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "RewardModel"
    phase = "training"
    environment = allocator.ENVIRONMENT
    work = "training.reward.fit:train_reward"
    drawings = (Curves(("loss", "accuracy"), {"loss": "nats a pair", "accuracy": "share of pairs"}),)
    random = True
    version = 3

    epochs: int = Field(1, ge=1, description="Passes over the pairs. More than two overfit easily.")
    batch: int = Field(32, ge=1, description="Pairs a step.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Pairs in memory at once, on each device; as many as keep a gibibyte (on a GPU: four) if left out.",
    )
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    warmup: float = Field(
        0.05, ge=0, le=1, description="Share of the steps in which the rate rises; then it falls to 0."
    )
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer pairs are left out.")
    margin: bool = Field(False, description="Ask for a difference of at least the column `margin` (log-odds).")
    soft: bool = Field(False, description="The label is the column `agreement` rather than 1.")
    reliability: dict[str, float] = Field(
        {}, description="Annotator -> weight of their rankings, over what `preferences` say; 1 if not named anywhere."
    )
    objectives: dict[str, float] = Field(
        {}, description="Weight of each objective in the reward, by the name its `preferences` have in `from`."
    )
    normalise: Literal["none", "log_odds", "unit"] | None = Field(
        None,
        description="What one point of reward is: as trained; calibrated log-odds of being preferred; one standard "
        "deviation of the training answers. Log-odds with `objectives`, else as trained.",
    )
    heads: int = Field(1, ge=1, description="Size of the ensemble on the shared backbone.")
    lora: Lora | None = Field(None, description="Train an adapter and the heads instead of all weights; it is merged.")
    centre: float = Field(0.01, ge=0, description="Weight of (r_chosen + r_rejected)^2, which keeps scores near 0.")
    held_out: float = Field(0.1, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    dtype: Dtype = "auto"
    recompute: Recompute = None
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")
    processes: Processes = None
    sharding: Sharding = "replicate"
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _whole(self) -> Reward:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        check_processes(self.processes, self.sharding, self.lora, self.batch, "pairs")
        if self.lora and (not self.lora.merge or self.lora.quantize):
            raise ValueError("a reward model's adapter is merged into float weights: leave out `merge` and `quantize`")
        return self

    def check(self, known: Preflight) -> None:
        from training.preference.answers_check import check

        check(known, "model")

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        return memory.forecast_fine_tuning(
            given["model"][0], device, self.lora, self.max_length, largest_part(self.batch, self.processes), self.micro_batch, self.dtype,
            self.recompute, rows=2, methods=("full", "lora"), scores_ids=False, masked=False,
            processes=split_over(self.processes, self.sharding), shared_by=self.processes or 1,
        )  # fmt: skip
