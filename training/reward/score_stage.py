"""`score`: what a reward model says of answers that are there already. Nothing is generated."""

from __future__ import annotations

from pydantic import Field

from engine.stage.stage import Stage, port


class Score(Stage):
    """Score candidates by a reward model."""

    takes = {"candidates": port("Candidate", many=True), "reward": port("RewardModel")}
    gives = "Verdict"
    phase = "training"
    work = "training.reward.score:score"
    version = 2

    metric: str = Field("reward", description="What to call the measurement.")
    pessimism: float = Field(0.0, ge=0, description="Standard deviations over an ensemble's heads taken off its mean.")
    partition: int = Field(1024, ge=1, description="Candidates a partition.")

    def sieve(self) -> str | None:
        return "candidates"

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return rows["candidates"]
