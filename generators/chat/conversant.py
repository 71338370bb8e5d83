"""Whoever takes part in a conversation and answers: a model on this machine, or one behind a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from generators.text.prompts import Message


class Conversant(Protocol):
    """One side of a conversation.

    Attributes:
        messages: what was said so far; may be set.
    """

    name: str
    messages: list[Message]

    def answer(
        self,
        question: str,
        temperature: float,
        max_tokens: int,
        show: Callable[[str], Any] = ...,
        shown: str | None = None,
    ) -> str:
        """Answer in the light of what was said.

        Args:
            show: gets the answer piece by piece, as it comes.
            shown: what the model is shown in place of the question, which alone is remembered.

        Raises:
            Unusable: the model can't be shown the question, which is then forgotten.
        """
        ...

    def fits(self, content: str, max_tokens: int) -> bool:
        """Whether a message of this content leaves room for an answer of so many tokens."""
        ...
