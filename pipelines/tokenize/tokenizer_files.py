"""Tokenizers in the Hugging Face layout: saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import UserError
from engine.plan.model_folder import loading
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
        tokenizer: Any = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    if tokenizer.eos_token_id is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"the tokenizer {location} needs an `eos_token` and a tokenizer.json.")
    return tokenizer
