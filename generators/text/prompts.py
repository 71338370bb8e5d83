"""What is asked, and what was answered: messages out of rows, and text out of token ids (`chat_template.py`: the other way)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

# `role` and `content`, and what `engine.store.schema.EXTRAS` names where a message calls a tool or was thought about.
Message = dict[str, Any]


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a model folder or hub name (`Artifact.location`).

    Raises:
        UserError: there is none that can be loaded.
    """
    from engine.plan.model_folder import loading

    wanted = "Expected a model folder with `tokenizer.json`, or the name of a model on the hub."
    with loading(location, "tokenizer", wanted):
        if _is_plain(Path(location)):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(location, trust_remote_code=False)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(location, trust_remote_code=False)


def _is_plain(folder: Path) -> bool:
    """Whether what transformers would find is the class for any `tokenizer.json`. To find it, it imports torch and all its models,
    which takes a stage that samples elsewhere longer than all else that it does."""
    from engine.plan.model_folder import json_object

    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    if not all((folder / name).is_file() for name in names):
        return False
    told = json_object(folder / "tokenizer_config.json")
    plain = told.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in told
    return plain and json_object(folder / "config.json").get("model_type") == "llama"


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
        return said(row["prompt"]), row.get("reference")
    messages = said(row.get("messages") or [])
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


def said(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a row without the fields that are not there; calls of tools stay the JSON text they are."""
    from engine.store.schema import EXTRAS  # with pyarrow, which a configuration that names messages has no need of

    extras = ({name: m[name] for name in EXTRAS if m.get(name) is not None} for m in messages)
    return [
        {"role": m["role"] or "", "content": m["content"] or "", **more}
        for m, more in zip(messages, extras, strict=True)
    ]
