"""In which type a stage that trains multiplies, and what it keeps for the backward pass, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.stage.stage import NotIdentity

Precision = Literal["auto", "float32", "bfloat16"]
Dtype = Annotated[
    Precision,
    Field(description="Of matrix products. `auto`: bfloat16 where the machine has units for it."),
]
Recompute = Annotated[
    bool | None,
    NotIdentity,
    Field(
        description="Make activations again in the backward pass, layer by layer: a fraction of their memory, a third more "
        "time. On a GPU if left out."
    ),
]
