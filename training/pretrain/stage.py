"""`pretrain`: from token shards to a base model, or to one that has read more."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.drawing import Curves
from engine.stage.preflight import Preflight
from engine.stage.stage import Device, NotIdentity, Stage, port
from training.hardware import memory
from training.loops.processes_settings import check_launch
from training.loops.schedule import ScheduleName
from training.loops.tracking_settings import ReportTo
from training.models.precision_settings import Dtype
from training.pretrain.size import Family, Size

OptimizerName = Literal["adamw", "muon", "normuon"]


class Pretrain(Stage):
    """Train a Llama or Qwen3 decoder from random weights, or go on with the causal language model on the port `model`.

    A model keeps its shape, tokenizer and type; the shards have to be made with its tokenizer. On the port `retained` stands text
    of the kind that it has read before: how well it still foresees that is measured before, on the way and after.
    """

    takes = {
        "tokens": port("TokenBlock"),
        "model": port("Model", optional=True),
        "retained": port("TokenBlock", optional=True),
    }
    gives = "Model"
    phase = "training"
    work = "training.pretrain.work:pretrain"
    drawings = (
        Curves(("loss", "bits_per_byte", "retained_bits_per_byte"), {"loss": "nats a token"}, "optimizer step"),
    )
    random = True
    version = 2

    family: Family = Field("llama", description="Architecture.")
    size: Size = Field(default_factory=Size, description="One dial, `depth`, and what overrides what follows from it.")

    steps: int | None = Field(None, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the shards, instead of `steps`.")
    tokens_per_parameter: float = Field(
        20.0, gt=0, description="The horizon when neither is given; with a model that is one pass over the shards."
    )
    batch: int = Field(16, ge=1, description="Blocks in one optimizer step, over all processes.")
    micro_batch: int | None = Field(None, ge=1, description="Blocks in memory at once; `batch` if left out.")

    optimizer: OptimizerName = Field(
        "adamw", description="AdamW, or Muon or NorMuon for matrices with AdamW for the rest."
    )
    lr: float | None = Field(
        None, gt=0, description="Peak learning rate; follows from the width if left out, a tenth of that with a model."
    )
    schedule: ScheduleName = Field(
        "cosine", description="Of the learning rate after the warmup; wsd: constant, then down at the end."
    )
    warmup: int | None = Field(None, ge=0, description="Steps; a fiftieth of all if left out, a tenth with a model.")
    decay: float = Field(0.3, gt=0, le=1, description="Share of the steps in which `wsd` falls.")
    final_lr: float = Field(0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")
    weight_decay: float = Field(0.1, ge=0, description="Of all optimizers.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay of AdamW's two moments.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's and NorMuon's.")
    clip: float = Field(1.0, gt=0, description="Greatest norm of the gradient.")

    dtype: Dtype = "auto"
    recompute: Annotated[bool, NotIdentity] = Field(
        False,
        description="Make activations again in the backward pass, layer by layer: a fraction of their memory, a third more time.",
    )
    document_mask: bool = Field(False, description="Tokens see their own document only.")
    compile: bool = Field(
        False,
        description="Use torch.compile. On a CPU it costs some 40 s once and saves a tenth to a fifth of each step.",
    )

    validation_every: Annotated[int | None, NotIdentity] = Field(None, ge=1, description="Steps; a tenth of all.")
    validation_blocks: int = Field(64, ge=1, description="At most so many blocks are validated on.")
    log_every: Annotated[int, NotIdentity] = Field(10, ge=1, description="Steps between two points of the curves.")
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
        check_launch(self.processes)
        return self

    def check_shape(self) -> None:
        """See that nothing is asked for that a model which exists has already.

        Raises:
            UserError: it is.
        """
        fresh = {"family": "llama", "size": Size(), "tokens_per_parameter": 20.0}
        if idle := [f"`{name}`" for name, value in fresh.items() if getattr(self, name) != value]:
            raise UserError(
                f"{' and '.join(idle)} {'is' if len(idle) == 1 else 'are'} for a model from random weights; on the port `model` "
                "there is one already. Leave it out, and say how long to train by `steps` or `epochs`."
            )

    def check(self, known: Preflight) -> None:
        if known.first("model"):
            self.check_shape()

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        (tokens,) = given["tokens"]
        vocabulary, block = tokens.get("summary", {}).get("vocab_size"), tokens.get("block")
        if not block:
            return {}
        if given.get("model"):
            config = given["model"][0].get("config") or {}
        elif vocabulary:
            config = {"model_type": self.family, **self.size.settings(vocabulary), "max_position_embeddings": block}
        else:
            return {}
        shape = memory.shape_of(config)
        if shape is None:
            return {"config": config} if config else {}
        count = self.processes or 1
        told = memory.forecast_pretraining(
            shape, device, self.batch // count, (self.micro_batch or self.batch) // count or 1, block,
            count if self.sharding == "shard" else 1, self.dtype, self.recompute,
        )  # fmt: skip
        return {"config": config, **told}
