"""Tiny Llama models and a byte-level tokenizer with a chat template, made from a configuration: no network, no hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.store.artifact import Artifact
from engine.store.digest import digest_folder, digest_json
from engine.store.store import Store

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{% generation %}<|end|>{% endgeneration %}{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HIDDEN = 32  # of a policy, if nothing else is said
WORDS = "yes no red blue green good bad cat dog one two three is the a what colour animal number ? . ,"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of 32 x 32 gain nothing from a second thread, and lose a lot to it where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokenizer(words: str = WORDS) -> Any:
    """One id a word (from 5 on), so that a test can write ids by hand. Id 0 pads, 1 ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words.split()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    inner.add_special_tokens(special[:4])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unk|>"
    )
    made.chat_template = TEMPLATE
    return made


def policy(seed: int = 0, vocabulary: int = 28, hidden: int = HIDDEN, layers: int = 2, tied: bool = True) -> Any:
    """A Llama of a few thousand parameters in float32, its weights drawn from this seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def save(folder: Path, seed: int = 0, dtype: str = "float32", **options: Any) -> Path:
    """A policy and its tokenizer in the Hugging Face layout."""
    import torch

    policy(seed, **options).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def artifact(store: Store, folder: Path, kind: str = "Model") -> Artifact:
    """A finished model artifact that stands in this folder."""
    key = digest_json(digest_folder(folder))  # what it is loaded as
    manifest = {"key": key, "schema": kind, "digest": key, "rows": 0, "files": {}, "external": str(folder)}
    return Artifact(store, f"external-{key[:16]}", manifest)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


PROMPTS = [
    {"id": f"prompt{i}", "prompt": user(f"what colour the {word} ?"), "reference": "blue"}
    for i, word in enumerate(["cat", "dog", "number", "animal", "good", "bad", "one", "two"])
]


def reward_model(store: Store, folder: Path, seed: int) -> Artifact:
    """A reward model of one head, its weights drawn from this seed."""
    from transformers import AutoModelForSequenceClassification

    from training.reward.fit import start_heads

    config = policy(seed).config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    start_heads(model, seed, zero=False)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return artifact(store, folder, "RewardModel")
