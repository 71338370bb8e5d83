"""`ask`: which prompts and answers to show people next."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.stage.stage import Stage, port


class Ask(Stage):
    """Pick the prompts, and the answers to each, that people should rank next.

    With `verdicts` of two or more models (a reward ensemble), the uncertainty is their disagreement; with `rankings`,
    what the ranking model does not know yet, so that prompts nobody has seen come first, then the least settled ones.
    `by: disputed` picks the prompts on which annotators contradict each other, with all their answers: an adjudication set,
    to be labelled by someone else and given to `preferences` as `adjudications`.
    Kept rows carry the column `asked`, which says how they were picked. The others are rejected as `not_asked`.
    """

    takes = {
        "candidates": port("Candidate", many=True),
        "verdicts": port("Verdict", many=True, optional=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "Candidate"
    phase = "people"
    work = "labeling.ask.work:pick"
    random = True

    prompts: int = Field(ge=1, description="How many prompts to ask about.")
    answers: int = Field(2, ge=2, description="How many answers to show of each.")
    by: Literal["information", "max_min", "random", "disputed"] = Field("information", description="How to pick.")
    random_share: float = Field(0.2, ge=0, le=1, description="Share of the prompts picked at random, for evaluation.")
    metric: str = Field("reward", description="The verdicts' metric that is a utility in log-odds.")

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return min(self.prompts * self.answers, rows.get("candidates", 0))
