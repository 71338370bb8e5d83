"""Conversations with a simulated user (UltraChat; Ding et al., 2023, arXiv:2305.14233): one call speaks as the user, another
as the assistant, each seeing all that was said.

As published: an opening line starts the conversation, and the simulated user is told the whole history and to go on as a
person would, for a drawn number of turns.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from generators.drafts.drafts import Draft, Made, Query, ask, assistant, user, whole
from generators.instructions.method import Method, World


class MultiTurn(Method):
    """Conversations of several turns that begin with the seeds."""

    needs: ClassVar[tuple[str, ...]] = ("seeds",)
    fresh: ClassVar[bool] = False

    template_variables: ClassVar[dict[str, dict[str, str]]] = {
        "user": {
            "messages": "what was said so far: messages with `role` and `content`",
            "character": "who the user is; may be empty",
        }
    }

    name: Literal["multi_turn"]
    least: int = Field(3, ge=1, description="Fewest turns of the user.")
    most: int = Field(7, ge=1, description="Most turns of the user.")
    character: str = Field(
        "", description="Who the simulated user is; a `persona` in a seed's metadata goes before it."
    )

    @model_validator(mode="after")
    def _check(self) -> MultiTurn:
        if self.least > self.most:
            raise ValueError(f"`least: {self.least}` is more than `most: {self.most}`")
        return self

    def draft(self, world: World, number: int) -> Draft:
        seed = world.nth(world.seeds, number)
        turns = int(world.random(number, "turns").integers(self.least, self.most + 1))
        character = str(seed.values.get("persona") or self.character)
        said = list(seed.messages) or [user(seed.text)]
        for turn in range(turns):
            if turn:
                answer = yield ask("multi_turn/user", world.sampling, messages=said, character=character)
                said = [*said, user(whole(answer))]
            answer = yield Query(said, world.sampling)
            said = [*said, assistant(whole(answer))]
        key = (
            "\n".join(message["content"] for message in said if message["role"] == "user")
            if turns > 1
            else said[-1]["content"]
        )
        return Made(said, key, [seed.id], metadata={"turns": turns})
