"""Persona Hub (Ge et al., 2024, arXiv:2406.20094): the same request made as many different people would make it.

As published: a persona is put into the prompt that asks for data (zero-shot, or few-shot with `seeds` as demonstrations);
personas are one line each, or are inferred from text (text-to-persona: who would read, write, like this?) and spread by
relation (persona-to-persona: who is close to them?).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from generators.drafts.drafts import Draft, Made, Query, ask, assistant, user, whole
from generators.instructions.method import Method, World

REQUESTS = [
    "a question they would ask an expert",
    "a task from their daily work that they would hand to an assistant",
    "a problem that can only be solved by reasoning, set in their world",
]


class Personas(Method):
    """Instructions as given by many personas, one a record."""

    needs: ClassVar[tuple[str, ...]] = ("records",)

    folder: ClassVar[str] = "persona"
    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "from_text": {"text": "the text of a record"},
        "related": {"persona": "a person"},
        "request": {
            "persona": "the person who asks",
            "request": "what to have them ask",
            "examples": "texts of seeds; may be empty",
        },
    }

    name: Literal["personas"]
    requests: list[str] = Field(REQUESTS, min_length=1, description="What to have each persona ask, drawn evenly.")
    from_text: bool = Field(False, description="The records are texts: who would read or write them is the persona.")
    related: float = Field(0.0, ge=0, le=1, description="Share of drafts that take somebody close to the persona.")
    demonstrations: int = Field(3, ge=0, description="Seeds shown, if there are any.")

    def draft(self, world: World, number: int) -> Draft:
        record = world.nth(world.records, number)
        random = world.random(number, "persona")
        persona = str(record.values.get("persona") or record.text)
        if self.from_text:
            answer = yield ask("persona/from_text", world.sampling, text=persona)
            persona = whole(answer)
        if random.random() < self.related:
            answer = yield ask("persona/related", world.sampling, persona=persona)
            persona = whole(answer)
        request = self.requests[int(random.integers(len(self.requests)))]
        shown = [world.seeds[i] for i in random.permutation(len(world.seeds))[: self.demonstrations].tolist()]
        answer = yield ask(
            "persona/request", world.sampling, persona=persona, request=request, examples=[seed.text for seed in shown]
        )
        asked = whole(answer)
        answer = yield Query([user(asked)], world.sampling)
        return Made(
            [user(asked), assistant(whole(answer))], asked, [record.id, *(seed.id for seed in shown)],
            metadata={"persona": persona, "request": request},
        )  # fmt: skip
