"""How many engines share a stage's partitions, as recipes say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Bounds(BaseModel):
    """As many as there is work for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(1, ge=1, description="Engines from the first partition on.")
    max: int = Field(ge=1, description="Engines at most.")

    @model_validator(mode="after")
    def _check(self) -> Bounds:
        if self.min > self.max:
            raise ValueError(f"`min: {self.min}` is more than `max: {self.max}`")
        return self


ReplicaCount = Annotated[int, Field(ge=1)] | Bounds


def bounds(replicas: ReplicaCount) -> tuple[int, int]:
    """The least and the most."""
    return (replicas, replicas) if isinstance(replicas, int) else (replicas.min, replicas.max)
