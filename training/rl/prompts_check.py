"""What the stages that learn from their own answers can know before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from generators.text.chat_template import ChatTemplate
from generators.text.learning_template import learning
from generators.text.prompts import prompt_of
from training.models.template_check import say_example, template_of

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


def check(known: Preflight) -> None:
    """Open the chat templates of policy and reward model, and say the first prompt as the policy will see it.

    Raises:
        UserError: one of them can't be used.
    """

    def read(tokenizer: Any) -> ChatTemplate:
        template = ChatTemplate(tokenizer)
        if template.fault:
            raise UserError(f"the model's chat template {template.fault}.")
        return template

    template_of(known, "reward", learning)
    template = template_of(known, "policy", read)
    if template is None:
        return

    def encode(row: Any) -> tuple[list[int], list[bool]]:
        ids = template.prompt(prompt_of(row)[0], row.get("tools"))
        return ids, [False] * len(ids)

    say_example(known, "prompts", template, encode)
