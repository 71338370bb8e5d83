"""What an adapter is to be, as a recipe says it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Lora(BaseModel):
    """An adapter of rank `r` on each target; its update is scaled by alpha / r (rsLoRA: alpha / sqrt(r))."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

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


def output_kind(lora: Lora | None) -> str:
    """The kind of artifact that training gives: an adapter by itself, or a whole model."""
    return "Adapter" if lora and not lora.merge else "Model"
