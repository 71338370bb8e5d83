"""`select`: of the answers to each prompt, those that verdicts speak for.

- best-of-N: `best: 1`;
- a threshold, as in rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825): `at_least: 1.0`;
- statistical rejection sampling (Liu et al. 2023, arXiv:2309.06657, algorithm 1): `beta: 0.5` keeps an answer with
  probability exp((r - max r) / beta), the maximum over the answers to its prompt.

Verdicts come from wherever: a reward model (`score`), a rule or a judge (`judge`). Nothing is generated.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from engine.stage.stage import Stage, port


class Select(Stage):
    """Keep the best answers to each prompt by their verdicts: best-of-N, a threshold, rejection sampling."""

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", many=True)}
    gives = "Candidate"
    phase = "generation"
    work = "generators.candidates.select:select"
    random = True
    version = 2

    metric: str | None = Field(None, description="What to go by; may be left out if there is one metric only.")
    weights: dict[str, float] = Field({}, description="Metric -> weight, to go by a weighted sum instead.")
    best: int | None = Field(None, ge=1, description="Keep at most this many answers to a prompt, the best first.")
    at_least: float | None = Field(None, description="Keep answers of this value or more.")
    beta: float | None = Field(None, gt=0, description="Statistical rejection sampling at this temperature.")
    give: Literal["candidates", "conversations"] = Field(
        "candidates", description="conversations: for SFT on what was kept."
    )

    @model_validator(mode="after")
    def _check(self) -> Select:
        if self.best is None and self.at_least is None and self.beta is None:
            raise ValueError("nothing to select by: give `best`, `at_least` or `beta`")
        if self.metric is not None and self.weights:
            raise ValueError("`metric` and `weights` both say what to go by; give one of them")
        return self

    def sieve(self) -> str | None:
        return "candidates"

    def output(self, given: dict[str, list[str]]) -> str:
        return "Conversation" if self.give == "conversations" else "Candidate"

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        if self.beta is None:  # nothing is drawn
            identity.pop("seed")
        return identity
