"""Instruction back-translation (Humpback; Li et al., 2023, arXiv:2308.06259): a document is the answer; which instruction
would have asked for it?

As published: the model writes the instruction for each document (self-augmentation), then rates the pair on a five-point
scale as training data, and only pairs of at least `threshold` are kept (self-curation; 5 in the paper's best run, A5).
A second iteration is this stage again, with the model that was tuned on the first one's rows. `tag` adds the system
message that tells these answers, found on the web, from those of people.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from generators.drafts.drafts import Draft, Made, Rejected, ask, assistant, user, whole
from generators.instructions.method import Method, World

SCORE = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["score"],
    "additionalProperties": False,
}
TAG = "Answer with knowledge from web search."


class Backtranslation(Method):
    """Instructions whose answers are the records."""

    needs: ClassVar[tuple[str, ...]] = ("records",)

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "instruction": {"text": "the document"},
        "score": {"instruction": "what was asked", "answer": "the document"},
    }

    name: Literal["backtranslation"]
    threshold: int = Field(5, ge=1, le=5, description="The least score a pair is kept with.")
    tag: bool = Field(False, description="Mark the rows as web answers with a system message.")
    longest: int = Field(8000, ge=1, description="Characters of a document; longer ones are left out.")

    def drafts(self, world: World) -> int:
        return len(world.records)

    def draft(self, world: World, number: int) -> Draft:
        record = world.nth(world.records, number)
        text = record.text.strip()
        if not text or len(text) > self.longest:
            raise Rejected("length", f"the document has {len(text)} characters")
        answer = yield ask("backtranslation/instruction", world.sampling, text=text)
        instruction = whole(answer)
        if alike := world.known.like(instruction):
            raise Rejected("not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}")
        certain = replace(world.sampling, temperature=0.0)
        answer = yield ask("backtranslation/score", certain, SCORE, instruction=instruction, answer=text)
        score = int(json.loads(answer.text)["score"])
        if score < self.threshold:
            raise Rejected("low_score", f"{score} of 5: {instruction[:200]}", score=score)
        said = [user(instruction), assistant(text)]
        if self.tag:
            said.insert(0, {"role": "system", "content": TAG})
        return Made(said, instruction, [record.id], metadata={"score": score})
