"""`dpo`: policy and preferences -> policy, without a reward model (Rafailov et al. 2023, eq. 7), on TRL.

    loss = -log sigmoid(beta (log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)))

The reference is always handed to TRL as a model of its own: left out, TRL 1.16 loads whatever the policy's configuration
names as its origin, which is silently the wrong model once the weights in memory differ from it. With `lora` the policy
without its adapter is the reference, and there is one copy of the weights.

`simpo` (Meng et al. 2024), `orpo` (Hong et al. 2024) and `cpo` (Xu et al. 2024) need no reference; TRL keeps them apart.
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

Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "simpo", "cpo", "orpo",
]  # fmt: skip
REFERENCE_FREE = ("simpo", "cpo", "orpo")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired", "simpo", "cpo")


class Dpo(Stage):
    """Train a policy on preferences directly."""

    takes = {
        "policy": port("Model", "Adapter"),
        "preferences": port("Preference", many=True),
        "reference": port("Model", "Adapter", optional=True),
    }
    gives = "Model"
    phase = "training"
    environment = allocator.ENVIRONMENT
    work = "training.preference.dpo:train_on_pairs"
    drawings = (
        Curves(
            ("loss", "rewards/accuracies", "rewards/margins"),
            {"loss": "nats a pair", "rewards/accuracies": "share of pairs", "rewards/margins": "nats"},
            "optimizer step",
        ),
    )
    random = True
    version = 4

    beta: float = Field(0.1, gt=0, description="How strongly the policy is held to the reference. `orpo`: lambda.")
    loss: Loss = Field("sigmoid", description="One of TRL's losses. `ipo` and `sigmoid_norm` are divided by length.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of labels believed wrong; for robust, exo_pair, aot, simpo and cpo."
    )
    length_decay: float | None = Field(
        None, ge=0, le=1, description="LD-DPO's alpha: how much tokens beyond the shorter answer's length count."
    )
    target_margin: float = Field(0.5, ge=0, description="SimPO's gamma: by how much chosen should lead.")
    sft_weight: float = Field(0.0, ge=0, description="Weight of the chosen answer's own log-likelihood (RPO, CPO).")
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    batch: int = Field(16, ge=1, description="Pairs a step.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Pairs in memory at once, on each device; as many as keep a gibibyte (on a GPU: four) if left out.",
    )
    lr: float = Field(1e-6, gt=0, description="Peak learning rate.")
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps in which the rate rises.")
    max_length: int = Field(1024, ge=2, description="Longest prompt and answer, in tokens. Longer pairs are left out.")
    reasoning: Literal["learn", "drop"] = Field(
        "learn",
        description="Whether a thought before an answer (`reasoning_content`, or a `<think>` block) counts as a part of it.",
    )
    held_out: float = Field(0.0, ge=0, lt=1, description="Share of prompts for validation where no row says `split`.")
    lora: Lora | None = Field(None, description="Train an adapter; the policy without it is the reference.")
    dtype: Dtype = "auto"
    recompute: Recompute = None
    checkpoint_every: Annotated[int, NotIdentity] = Field(50, ge=1, description="Steps.")
    processes: Processes = None
    sharding: Sharding = "replicate"
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Dpo:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"`label_smoothing` has no effect on `{self.loss}`; it has on {', '.join(SMOOTHED)}")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("`exo_pair` needs a `label_smoothing` above 0; its paper recommends 0.001")
        if self.length_decay is not None and self.reference_free:
            raise ValueError(f"`length_decay` has no effect on `{self.loss}`")
        if self.loss == "orpo" and self.sft_weight:
            raise ValueError("`orpo` holds the chosen answer's likelihood already: leave out `sft_weight`")
        told = f"`{self.loss}`{' with `sft_weight`' if self.sft_weight else ''} puts different pairs together"
        check_processes(
            self.processes, self.sharding, self.lora, self.shareable, "passes" if self.together else "pairs",
            told if self.together and not self.micro_batch else "",
        )  # fmt: skip
        return self

    @property
    def reference_free(self) -> bool:
        return self.loss in REFERENCE_FREE

    @property
    def together(self) -> bool:
        """Whether the loss puts the tokens or the margins of different pairs together."""
        return self.loss in ("aot", "aot_unpaired", "orpo") or self.sft_weight > 0

    @property
    def at_once(self) -> int | None:
        """Pairs of a pass; None for as many as fit. Losses that put different pairs together have all at once, unless the recipe says
        otherwise."""
        return self.micro_batch or (self.batch if self.together else None)

    @property
    def shareable(self) -> int:
        """By how many processes a step can be shared at most."""
        return self.batch // (self.micro_batch or self.batch) if self.together else self.batch

    def output(self, given: dict[str, list[str]]) -> str:
        return output_kind(self.lora)

    def check(self, known: Preflight) -> None:
        from training.preference.answers_check import check

        check(known, "policy", self.reasoning)

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        split = split_over(self.processes, self.sharding)
        references = int(not self.lora and not self.reference_free) / split
        return memory.forecast_fine_tuning(
            given["policy"][0], device, self.lora, self.max_length, largest_part(self.batch, self.processes), self.at_once, self.dtype, self.recompute,
            rows=2, references=references, processes=split, shared_by=self.processes or 1,
        )  # fmt: skip
