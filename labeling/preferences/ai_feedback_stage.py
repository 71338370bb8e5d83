"""`ai_feedback`: a judge's verdicts as rankings, so that a judge is one more annotator: of the kind `judge`.

It goes into `preferences` beside people's rankings, which never mixes the two unless the recipe says so, and tells the
judge's share, its agreement with people and its biases either way; or alone, for preferences without people (RLAIF).
"""

from __future__ import annotations

from pydantic import Field

from engine.stage.stage import Stage, port


class AiFeedback(Stage):
    """Turn verdicts of a `judge` stage into rankings by an annotator of the kind `judge`.

    Verdicts on pairs (`metric: pairwise`) make a ranking of two each; any other metric ranks all answers to a prompt by its
    value, equal values tied. Prompts with fewer than two judged answers are rejected as `not_judged`.
    """

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", many=True)}
    gives = "Ranking"
    phase = "people"
    work = "labeling.preferences.judge_as_annotator:rank_by_verdicts"

    metrics: tuple[str, ...] = Field(
        ("pairwise",), min_length=1, description="The verdicts' metrics; several that rate an answer are added up."
    )
    annotator: str | None = Field(None, description="The judge's name; what the verdicts say if not given.")
