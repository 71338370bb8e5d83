"""Prompts with answers as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generators.text.learning_template import LearningTemplate
    from generators.text.prompts import Message
    from generators.text.thoughts import Reasoning


@dataclass(frozen=True)
class EncodedAnswer:
    """Token ids of a prompt (rendered, with the header of the assistant's turn) and of an answer to it."""

    prompt: list[int]
    response: list[int]

    def after(self, tokens: int) -> EncodedAnswer:
        """The same text with this many tokens as its prompt."""
        whole = [*self.prompt, *self.response]
        return EncodedAnswer(whole[:tokens], whole[tokens:])

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(
    template: LearningTemplate,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    tools: str | None = None,
    reasoning: Reasoning = "learn",
) -> EncodedAnswer:
    """A written answer as the model would be taught it: the prompt's ids, the answer's, and the end of the turn.

    Raises:
        Unusable: the chat template can't show the model these messages.
    """
    return EncodedAnswer(*template.answer(prompt, completion, tools, reasoning))


def encode_all(
    template: LearningTemplate, prompt: Sequence[Message], texts: Sequence[str], tools: str | None = None
) -> list[EncodedAnswer]:
    """`encode` of several answers to one prompt."""
    return [encode(template, prompt, [{"role": "assistant", "content": text}], tools) for text in texts]
