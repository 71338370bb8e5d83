"""Tiny models of random weights with the chat templates that people's models come with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.parts.template_table import tokenizer
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training.tiny_chat import artifact


def save(folder: Path, name: str, template: str | None = None) -> Any:
    """Write a model with TRL's template of that name, or another; returns its tokenizer."""
    from transformers import AutoModelForCausalLM

    from training.pretrain.llama import decoder_config
    from training.pretrain.size import Size

    tokens = tokenizer(name)
    tokens.chat_template = template or tokens.chat_template
    tokens.pad_token = tokens.eos_token
    end: Any = tokens.eos_token_id
    config = decoder_config(Size(depth=1, width=32, heads=2), "llama", len(tokens), 512, end, end)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return tokens


def stock(store: Store, folder: Path, name: str, template: str | None = None) -> tuple[Artifact, Any]:
    """Such a model as an artifact, and its tokenizer."""
    tokens = save(folder, name, template)
    return artifact(store, folder), tokens
