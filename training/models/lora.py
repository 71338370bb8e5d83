"""Low-rank adapters: LoRA (Hu et al. 2021, arXiv:2106.09685), and DoRA, rsLoRA and QLoRA as its options, through PEFT.

An adapter is a small artifact of its own: it names the artifact it was trained on, is served unmerged by vLLM, and
merges into a full model when that is wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from engine.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

    from engine.stage.job import Job

ADAPTER_CONFIG = "adapter_config.json"


class Lora(BaseModel):
    """An adapter of rank `r` on each target; its update is scaled by alpha / r (rsLoRA: alpha / sqrt(r))."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="Layers by the end of their names; all but the output layer if left out."
    )
    dora: bool = Field(default=False, description="Learn magnitude and direction apart (arXiv:2402.09353).")
    rslora: bool = Field(default=False, description="Scale by 1/sqrt(r), stable in large ranks (arXiv:2312.03732).")
    quantize: bool = Field(default=False, description="QLoRA: hold the frozen weights in 4 bits. Needs a GPU.")
    merge: bool = Field(default=True, description="Give the merged model; otherwise the adapter alone.")

    def config(self) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=cast(int, self.alpha),
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            use_dora=self.dora,
            use_rslora=self.rslora,
        )


def quantization() -> Any:
    """4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).

    Raises:
        UserError: there is no GPU, or bitsandbytes is not installed.
    """
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise UserError("`quantize` (QLoRA) needs an NVIDIA GPU, and there is none. Leave it out to train LoRA.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("`quantize` (QLoRA) needs bitsandbytes: pip install bitsandbytes.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def is_adapter(location: str) -> bool:
    return (Path(location) / ADAPTER_CONFIG).exists()


def base_of(location: str, job: Job) -> str:
    """Where the model is that this adapter was trained on.

    Raises:
        UserError: it is not in the store.
    """
    from generators.backends import adapters

    return adapters.base_of(location, job.store)


def merged(model: Any, location: str) -> Any:
    """The base model with an adapter's update added to its weights."""
    from peft import PeftModel

    return cast(Any, PeftModel.from_pretrained(model, location)).merge_and_unload()


def trainable_share(model: Any) -> float:
    """Trained weights as a share of all."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in counts if trained) / sum(n for n, _ in counts)


def say_cost(job: Job, model: Any, batch: int, length: int) -> None:
    """Tell what the adapter cost, beside what training all weights is counted to take."""
    import torch

    from training.hardware import flops, memory

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
