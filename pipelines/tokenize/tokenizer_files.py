"""Tokenizers in the Hugging Face layout: saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.errors import UserError
from engine.plan.model_folder import json_object, loading
from pipelines.tokenize.special_tokens import END, SPECIAL


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Save in the Hugging Face layout, without a chat template: that is what tells a base model."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(str(folder))


def load(location: str) -> Any:
    """A Hugging Face tokenizer from a folder or by hub name.

    Raises:
        UserError: it can't be loaded, or has no end-of-sequence token to put between documents.
    """
    with loading(location, "tokenizer"):
        kind = _class(Path(location))
        tokenizer: Any = kind.from_pretrained(location, trust_remote_code=False)
    if tokenizer.eos_token_id is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"the tokenizer {location} needs an `eos_token` and a tokenizer.json.")
    return tokenizer


def _class(folder: Path) -> Any:
    """What loads a tokenizer. To find out that it is the class for any `tokenizer.json`, transformers imports torch and all its models: 4 CPU
    seconds in which no core encodes. A folder without a model that says so by itself, as ours do, is believed."""
    file = folder / "tokenizer_config.json"
    if file.is_file() and (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists():
        told = json_object(file)
        if told.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in told:
            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer
