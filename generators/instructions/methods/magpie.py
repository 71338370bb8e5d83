"""Magpie (Xu et al., 2024, arXiv:2406.08464): an aligned model, given its chat template up to the user's turn and nothing
else, writes what users write; then it answers.

As published (section 2): the pre-query template alone is the prompt, the user's turn is sampled at a higher temperature
until the model ends it, and the answer is greedy. More turns (Magpie-MT) go on the same way; a system prompt steers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from engine.errors import UserError
from generators.drafts.drafts import Draft, Made, Query, Rejected, assistant, user, whole
from generators.instructions.method import Method, World
from generators.text.prompts import Message

MARK = "\u241fhere the user speaks\u241f"


class Magpie(Method):
    """Conversations out of an aligned model alone; no seed is needed."""

    weights: ClassVar[bool] = True

    name: Literal["magpie"]
    turns: int = Field(1, ge=1, description="Of the user, each with its answer.")
    system: str | None = Field(
        None, description="A system prompt that steers what is asked about; not kept in the rows."
    )

    def draft(self, world: World, number: int) -> Draft:
        steering: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        said = list[Message]()
        for turn in range(self.turns):
            ids = pre_query(world.tokenizer, [*steering, *said])
            answer = yield Query(tuple(ids), replace(world.sampling, temperature=max(world.sampling.temperature, 0.01)))
            asked = whole(answer)
            if turn == 0 and (alike := world.known.like(asked)):
                raise Rejected("not_novel", f"{alike[0]} {alike[2]:.2f} with {alike[1]}")
            said.append(user(asked))
            answer = yield Query([*steering, *said], replace(world.sampling, temperature=0.0))
            said.append(assistant(whole(answer)))
        return Made(said, said[0]["content"])


def pre_query(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to the point at which the user begins the next turn.

    Raises:
        UserError: the model has no chat template.
    """
    from generators.text.chat_template import REFUSALS, ChatTemplate  # with Jinja, which a configuration has no need of

    template = ChatTemplate(tokenizer)
    if template.template is None:
        raise UserError("`magpie` needs a model with a chat template: one that was trained on conversations.")
    try:
        before, mark, _ = template.render([*messages, user(MARK)]).partition(MARK)
    except REFUSALS as error:
        raise UserError(f"`magpie` can't begin the user's turn: this model's chat template says: {error}") from error
    if not mark:
        raise UserError(
            "`magpie` can't find the user's turn in this model's chat template, which rewrites what is said."
        )
    return [int(i) for i in tokenizer(before, add_special_tokens=False)["input_ids"]]
