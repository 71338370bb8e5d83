"""Where the curves of a training stage go besides its artifact, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.stage.stage import NotIdentity

Tracker = Literal["none", "tensorboard", "trackio", "wandb"]
ReportTo = Annotated[
    Tracker, NotIdentity, Field(description="Show the curves there as well; `tensorboard` writes into ./runs.")
]
