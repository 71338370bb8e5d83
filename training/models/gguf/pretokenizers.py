"""How a byte-level BPE cuts a text before it merges: what GGUF files say by a name, and tokenizer.json by parts.

The names are llama.cpp's (`tokenizer.ggml.pre`); each stands there for a list of regular expressions.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as SPLITS

from engine.errors import UserError

# Cut as GPT-2 does, and as those that cut digits one by one before that.
PLAIN = ("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4")
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
# By which name each way is written; several read alike.
WRITTEN = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o")

Way = tuple[tuple[str, Any], ...]


def way(name: str) -> Way:
    """What a pre-tokenizer of this name does, step by step.

    Raises:
        UserError: the name is not known here.
    """
    if name in PLAIN:
        return (("bytes", True),)
    if name in DIGITS:
        return (("digits", True), ("bytes", True))
    if name in SPLITS:
        return (("split", SPLITS[name]), ("bytes", False))
    raise UserError(
        f"the file cuts texts by the pre-tokenizer `{name}`, which is not known here, so a text would become other tokens than "
        f"those the model was trained on. Known: {', '.join(sorted({*PLAIN, *DIGITS, *SPLITS}))}. Start from the model's "
        "folder in the Hugging Face layout instead."
    )


def put(backend: Tokenizer, name: str) -> None:
    """Have a tokenizer cut texts as this name says."""
    parts: list[Any] = []
    for step, value in way(name):
        if step == "split":
            parts.append(pre_tokenizers.Split(Regex(value), behavior="isolated"))
        elif step == "digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=value))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]  # pyright: ignore[reportAttributeAccessIssue]
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]


def name_of(backend: Tokenizer) -> str:
    """The name under which llama.cpp cuts texts as this tokenizer does.

    Raises:
        UserError: it has none.
    """
    described = json.loads(backend.to_str())
    first: dict[str, Any] = described["pre_tokenizer"] or {}
    parts: list[dict[str, Any]] = first.get("pretokenizers") or [first]
    found = tuple(_step(part) for part in parts)
    for name in WRITTEN:
        if way(name) == found and (described["normalizer"] or {}).get("type") in (None, "NFC"):
            return name
    raise UserError(
        "the tokenizer cuts texts in a way that has no name in GGUF: expected a byte-level BPE that cuts as "
        f"{', '.join(WRITTEN)} do, found {json.dumps(described['pre_tokenizer'], ensure_ascii=False)[:300]}. Export the "
        "model without `--format gguf`."
    )


def _step(part: dict[str, Any]) -> tuple[str, Any]:
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "bytes", part.get("use_regex", True)
        case {"type": "Digits", "individual_digits": True}:
            return "digits", True
        case {"type": "Split", "behavior": "Isolated", "invert": False}:
            return "split", part["pattern"].get("Regex")
        case _:
            return "other", json.dumps(part)
