"""Constitutional critique and revision (Bai et al., 2022, arXiv:2212.08073, section 3): an answer is criticised by a
principle and rewritten; the model is then tuned on the rewritten answers (SL-CAI).

As published: the model answers the prompt (or the answer that comes with the seed is taken), a principle is drawn for
each round, critique and revision go on from each other, and the last revision is the row. The seeds may be Candidates,
Conversations or Prompts.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from engine import seeds
from generators.drafts.drafts import Draft, Made, Query, ask, assistant, user, whole
from generators.instructions.method import Method, World

PRINCIPLES = [
    "The answer should do no harm: it should not help anyone to hurt people, themselves or others.",
    "The answer should be honest about what it does not know, and claim no more than it can support.",
    "The answer should be respectful: no insult, no prejudice, no contempt for the person or for others.",
    "The answer should be useful: where a request can't be met it says why, and what could help instead.",
]


class Constitutional(Method):
    """Answers of the seeds, criticised by principles and revised."""

    needs: ClassVar[tuple[str, ...]] = ("seeds",)
    fresh: ClassVar[bool] = False

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "critique": {
            "messages": "the conversation up to the answer: messages with `role` and `content`",
            "answer": "the answer so far",
            "principle": "what it should meet",
        },
        "revision": {
            "messages": "the conversation up to the answer: messages with `role` and `content`",
            "answer": "the answer so far",
            "principle": "what it should meet",
            "critique": "what the model found wrong with it",
        },
    }

    name: Literal["constitutional"]
    principles: list[str] = Field(PRINCIPLES, min_length=1, description="The constitution.")
    revisions: int = Field(1, ge=1, description="Rounds of critique and revision, each by another principle.")

    def drafts(self, world: World) -> int:
        return len(world.seeds)

    def draft(self, world: World, number: int) -> Draft:
        seed = world.seeds[number]
        prompt = seed.messages or [user(seed.text)]
        first = seed.answer
        if not first:
            answer = yield Query(prompt, world.sampling)
            first = whole(answer)
        order = seeds.shuffled(self.principles, world.seed, "principles", seed.id, number)
        said, trail = first, list[dict[str, str]]()
        for turn in range(self.revisions):
            principle = order[turn % len(order)]
            values: dict[str, Any] = {"messages": prompt, "answer": said, "principle": principle}
            answer = yield ask("constitutional/critique", world.sampling, **values)
            critique = whole(answer)
            answer = yield ask("constitutional/revision", world.sampling, **values, critique=critique)
            said = whole(answer)
            trail.append({"principle": principle, "critique": critique})
        return Made(
            [*prompt, assistant(said)], f"{seed.text}\n{said}", [seed.id],
            metadata={"initial": first, "revisions": trail},
        )  # fmt: skip
