"""`decontaminate` and `contamination`: what training rows have in common with what a model will be evaluated on.

A row is contaminated if it has `ngram` words in a row in common with a row of an evaluation set (Brown et al. 2020, GPT-3,
appendix C, which used 13; words as `engine.text.words` has them), or is nearly the same as one. `decontaminate` removes such rows;
`contamination` changes nothing and tells which evaluation rows were touched by what. A recipe that evaluates gets the
latter by itself.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from engine.stage.stage import NotIdentity, Port, Stage, port

ROWS = ("Document", "Prompt", "Conversation", "Preference")
Ngram = Annotated[int, Field(ge=1, description="Words in a row that make an overlap.")]
MinWords = Annotated[int, Field(ge=1, description="Evaluation rows of fewer words are not looked for.")]
Near = Annotated[
    float | None,
    Field(gt=0, le=1, description="Jaccard similarity of word 5-grams from which a row is nearly an evaluation row."),
]


class Decontaminate(Stage):
    """Remove training rows that overlap with evaluation rows; each names the evaluation row it touched and the passage."""

    takes: ClassVar[dict[str, Port]] = {
        "documents": port(*ROWS, many=True),
        "against": port(*ROWS, many=True),
    }
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.decontaminate.work:decontaminate"
    narrows: ClassVar[bool] = True
    version: ClassVar[int] = 4

    ngram: Ngram = 13
    min_words: MinWords = 5
    near: Near = 0.8

    def sieve(self) -> str | None:
        return "documents"

    def output(self, given: dict[str, list[str]]) -> str:
        """The kind of the training rows."""
        kinds = given.get("documents") or ["Document"]
        return kinds[0]


class Contamination(Stage):
    """Tell which evaluation rows stand in what the models were trained on: one Verdict an evaluation row and training set.

    `value` is how many rows of the training set touch the evaluation row, `text` the first of them with what they share.
    """

    takes: ClassVar[dict[str, Port]] = {
        "training": port(*ROWS, many=True, labelled=True),
        "against": port(*ROWS, many=True),
    }
    gives: ClassVar[str] = "Verdict"
    phase: ClassVar[str] = "curation"
    meaning: ClassVar[str] = (
        "a row of the evaluation counts as touched where a run of its words stands in a training row. That a question stands there says little by "
        "itself; where its known answer stands beside it, a model may have learnt that answer by heart, and what it gets right on these rows is the "
        "most one may expect of it on new ones."
    )
    work: ClassVar[str] = "pipelines.decontaminate.work:contamination"
    version: ClassVar[int] = 3

    ngram: Ngram = 13
    min_words: MinWords = 5
    near: Near = 0.8
    max_touched: Annotated[float, NotIdentity] = Field(
        1.0, ge=0, le=1, description="Share of the evaluation rows that may be touched before the stage fails."
    )
