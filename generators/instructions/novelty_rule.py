"""When a row is new: what a configuration says of it. `novelty.py` looks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Novelty(BaseModel):
    """How unlike everything that is there a row must be. Exact copies (of the words) are never new."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    rouge_l: float | None = Field(
        0.7, gt=0, le=1, description="A row this like an earlier one (ROUGE-L F1) is not new."
    )
    jaccard: float | None = Field(None, gt=0, le=1, description="The same for the share of word n-grams in common.")
    n: int = Field(3, ge=1, description="Words of an n-gram.")
