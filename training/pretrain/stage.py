"""`pretrain`: from token shards to a base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.stage.drawing import Curves
from engine.stage.stage import Device, NotIdentity, Stage, port
from training.hardware import memory
from training.loops.schedule import ScheduleName
from training.loops.tracking_settings import ReportTo
from training.pretrain.size import Family, Size

if TYPE_CHECKING:
    from engine.stage.job import Job

OptimizerName = Literal["adamw", "muon"]


class Pretrain(Stage):
    """Train a Llama or Qwen3 decoder from random weights."""

    takes = {"tokens": port("TokenBlock")}
    gives = "Model"
    phase = "training"
    drawings = (Curves(("loss", "validation_bpb")),)
    random = True

    family: Family = "llama"
    size: Size = Field(default_factory=Size, description="One dial, `depth`, and what overrides what follows from it.")

    steps: int | None = Field(None, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the shards, instead of `steps`.")
    tokens_per_parameter: float = Field(20.0, gt=0, description="The horizon when neither is given.")
    batch: int = Field(16, ge=1, description="Blocks in one optimizer step, over all processes.")
    micro_batch: int | None = Field(None, ge=1, description="Blocks in memory at once; `batch` if left out.")

    optimizer: OptimizerName = "adamw"
    lr: float | None = Field(None, gt=0, description="Peak learning rate; follows from the width if left out.")
    schedule: ScheduleName = "cosine"
    warmup: int | None = Field(None, ge=0, description="Steps; a fiftieth of all if left out.")
    decay: float = Field(0.3, gt=0, le=1, description="Share of the steps in which `wsd` falls.")
    final_lr: float = Field(0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's.")
    clip: float = Field(1.0, gt=0, description="Greatest norm of the gradient.")

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of matrix products. `auto`: bfloat16 where the machine has units for it."
    )
    document_mask: bool = Field(False, description="Tokens see their own document only.")
    compile: bool = Field(
        False,
        description="Use torch.compile. On a CPU it costs some 40 s once and saves a tenth to a fifth of each step.",
    )

    validation_every: Annotated[int | None, NotIdentity] = Field(None, ge=1, description="Steps; a tenth of all.")
    validation_blocks: int = Field(64, ge=1, description="At most so many blocks are validated on.")
    log_every: Annotated[int, NotIdentity] = Field(10, ge=1)
    checkpoint_every: Annotated[int, NotIdentity] = Field(100, ge=1, description="Steps.")
    keep: Annotated[int, NotIdentity] = Field(2, ge=1, description="Checkpoints kept, besides the best.")
    processes: Annotated[int | None, NotIdentity] = Field(
        None, ge=1, description="That share each batch; one for each GPU if left out. Changes rounding only."
    )
    sharding: Annotated[Literal["replicate", "shard"], NotIdentity] = Field(
        "replicate", description="`shard`: FSDP2, for models that don't fit one GPU."
    )
    prompts: Annotated[tuple[str, ...], NotIdentity] = Field(
        (), description="Continued at each validation, to be read."
    )
    report_to: ReportTo = "none"

    @model_validator(mode="after")
    def _consistent(self) -> Pretrain:
        if self.steps and self.epochs:
            raise ValueError("give `steps` or `epochs`, not both")
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"`micro_batch` ({self.micro_batch}) must divide `batch` ({self.batch})")
        if self.optimizer == "muon" and self.sharding == "shard":
            raise ValueError("`muon` needs whole matrices: use `sharding: replicate`, or `adamw`")
        return self

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        (tokens,) = given["tokens"]
        vocabulary, block = tokens.get("summary", {}).get("vocab_size"), tokens.get("block")
        if not vocabulary or not block:
            return {}
        config = {"model_type": self.family, **self.size.settings(vocabulary), "max_position_embeddings": block}
        shape = memory.shape_of(config)
        assert shape is not None
        count = self.processes or 1
        needs = memory.say_pretraining(
            shape, device, self.batch // count, (self.micro_batch or self.batch) // count or 1, block,
            count if self.sharding == "shard" else 1,
        )  # fmt: skip
        return {"config": config, "needs": needs}

    def run(self, job: Job) -> None:
        from training.pretrain.work import pretrain

        pretrain(self, job)
