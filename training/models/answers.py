"""Prompts with answers as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import UserError
from generators.text.prompts import Message, encode_prompt

TOKENS = 16_384  # of a batch of answers, padding included


@dataclass(frozen=True)
class Answer:
    """Token ids of a prompt (rendered, with the header of the assistant's turn) and of an answer to it."""

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def end_id(tokenizer: Any, where: str) -> int:
    """The id that ends an assistant's turn.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, so that a model could not say that it is done.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {where} has no `eos_token`: nothing ends an answer. Set one before training."
        )
    return int(tokenizer.eos_token_id)


def encode(tokenizer: Any, prompt: Sequence[Message], completion: Sequence[Message]) -> Answer:
    """Tokenise a written answer as a sampled one looks: the prompt's ids, the answer's, and the end of the turn."""
    *before, last = completion
    return encode_all(tokenizer, [*prompt, *before], [last["content"]])[0]


def encode_all(tokenizer: Any, prompt: Sequence[Message], texts: Sequence[str]) -> list[Answer]:
    """`encode` of several answers to one prompt, which is rendered once."""
    ids, end = encode_prompt(tokenizer, prompt), end_id(tokenizer, "this model")
    return [Answer(ids, [*tokenizer.encode(text, add_special_tokens=False), end]) for text in texts]
