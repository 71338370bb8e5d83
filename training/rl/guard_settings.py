"""When a guard (`training.rl.guard`) stops a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class GuardConfig(BaseModel):
    """When to stop optimising against a reward model."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_disagreement: float | None = Field(
        default=4.0,
        gt=1,
        description="Where no held-out score is measured: stop when the heads disagree this many times as much as at first.",
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="Stop after this many held-out scores in a row that are beyond doubt below the best.",
    )
    z: float = Field(
        default=1.0, ge=0, description="How many standard errors of their difference below the best is beyond doubt."
    )
