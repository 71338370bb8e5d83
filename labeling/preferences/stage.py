"""`preferences`: rankings -> pairs to train on, with how sure one can be of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.stage.stage import Stage, port

Kind = Literal["person", "scripted", "judge"]


class Preferences(Stage):
    """Turn rankings into preference pairs.

    Kept rows carry two more columns than the schema: `confidence`, the probability that `chosen` is worth more, and
    `kinds`, the kinds of annotator behind it (`person`, `judge+person`, ...).

    Rejected, by reason: `malformed`, `empty` (nothing ranked), `one_answer`, `flagged`, `kind`, `failed_gold`,
    `failed_attention`, `attention_check` (asks nothing real), `adjudicated` (someone else decides) are whole rankings;
    `identical` (one text twice), `not_compared`, `few_annotators`, `tie`, `conflict` (as much weight against as for),
    `low_agreement`, `low_margin`, `low_confidence` are pairs.
    """

    takes = {
        "rankings": port("Ranking", many=True),
        "gold": port("Preference", optional=True),
        "adjudications": port("Ranking", many=True, optional=True),
    }
    gives = "Preference"
    phase = "people"
    work = "labeling.preferences.work:to_pairs"

    pairs: Literal["all", "best_worst", "adjacent"] = Field("all", description="Which pairs of a prompt's answers.")
    min_agreement: float = Field(
        0.5, ge=0, le=1, description="Least share of annotators, ties counted as not agreeing, who prefer the chosen."
    )
    min_annotators: int = Field(1, ge=1, description="Least annotators who compared the two.")
    min_margin: float = Field(0.0, ge=0, description="Least difference of utilities, in log-odds.")
    min_confidence: float = Field(0.0, ge=0, lt=1, description="Least probability that the chosen is worth more.")
    validation: float = Field(0.1, ge=0, lt=1, description="Share of prompts set aside for validation.")
    unranked: Literal["below", "ignored"] = Field(
        "below", description="Answers without a rank: worse than all that have one, or not seen."
    )
    weigh: bool = Field(True, description="Weigh annotators by the reliability they have shown.")
    position_bias: bool = Field(True, description="Estimate the pull of what is shown first, and take it out.")
    kinds: tuple[Kind, ...] | None = Field(
        None, description="Kinds of annotator that count. Must be said where people and judges are mixed."
    )
    ignore_flagged: tuple[str, ...] = Field((), description="Flags that set a ranking aside, e.g. can't judge.")
    min_gold: float | None = Field(
        None, ge=0, le=1, description="Set aside annotators who get less than this share of gold pairs right."
    )
    min_attention: float | None = Field(
        None, ge=0, le=1, description="Set aside annotators who rank less than this share above planted answers."
    )
