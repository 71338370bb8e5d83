"""Messages to token ids and back: the one place where a prompt is tokenised.

What is sampled from, scored and trained on are these ids, so every stage that shows a model a prompt goes through here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from engine.errors import UserError

Message = dict[str, str]


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a model folder or hub name (`Artifact.location`).

    Raises:
        UserError: there is none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"no tokenizer can be loaded from {location}: {first} "
            "Expected a model folder with `tokenizer.json`, or the name of a model on the hub."
        ) from error


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The token ids after which the model's answer starts.

    A tokenizer with a chat template renders it, with the header of the assistant's turn. One without belongs to a base
    model, which has never seen a turn: it gets the contents as plain text, one a line, and goes on on a new line.
    """
    if getattr(tokenizer, "chat_template", None):
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(i) for i in ids]
    text = "\n".join(message["content"] for message in messages) + "\n"
    ids = cast(list[int], tokenizer(text)["input_ids"])
    # Some tokenizers close every text with EOS; a prompt is not closed.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


MARK = "\u2042"  # stands for an answer in a template; no template has it


def between(tokenizer: Any, last: Sequence[int], user: str) -> list[int]:
    """The ids between an answer, as it was sampled, and the next: its end, what the user says, the assistant's header.

    Args:
        last: the id that the answer ends with; where that is the end of the turn already, it is not said twice.

    Raises:
        UserError: the chat template leaves out earlier answers.
    """
    if not getattr(tokenizer, "chat_template", None):
        return [int(i) for i in tokenizer(f"\n{user}\n", add_special_tokens=False)["input_ids"]]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": user}], add_generation_prompt=True, tokenize=False
    )
    _, found, rest = str(whole).partition(MARK)
    if not found:
        raise UserError("the chat template leaves out the assistant's earlier answers, so no conversation can go on.")
    ids = [int(i) for i in tokenizer(rest, add_special_tokens=False)["input_ids"]]
    return ids[1:] if ids[:1] == list(last) else ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of sampled ids, without special tokens and surrounding white space."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def decode_all(tokenizer: Any, batch: Sequence[Sequence[int]]) -> list[str]:
    """`decode` of many completions at once."""
    if not batch:  # which the tokenizer would take for one empty text
        return []
    return [text.strip() for text in tokenizer.batch_decode(batch, skip_special_tokens=True)]


def prompt_of(row: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    """What a Prompt or Conversation row asks, and the known right answer.

    A conversation asks everything up to its last assistant turn, whose content is the reference unless the row has
    its own, or a model said it (its metadata names the model): what a model guessed is no known right answer.
    """
    if row.get("prompt") is not None:
        return _messages(row["prompt"]), row.get("reference")
    messages = _messages(row.get("messages") or [])
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        return messages, row.get("reference")
    reference = row.get("reference")
    if reference is None and not _said_by_a_model(row):
        reference = messages[last]["content"]
    return messages[:last], reference


def _said_by_a_model(row: Mapping[str, Any]) -> bool:
    try:
        noted = json.loads(row.get("metadata") or "{}")
    except (TypeError, ValueError):
        return False
    return isinstance(noted, dict) and bool(cast("dict[str, Any]", noted).get("model"))


def _messages(value: Sequence[Mapping[str, Any]]) -> list[Message]:
    return [{"role": message["role"] or "", "content": message["content"] or ""} for message in value]
