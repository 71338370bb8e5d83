"""A world of words that are worth something, with a tokenizer and a Llama of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.store.artifact import Artifact
from engine.store.digest import digest_folder, digest_json
from engine.store.store import Store


def model(store: Store, folder: Path, tokenizer: Any, width: int, layers: int, context: int) -> Artifact:
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from training.models.load import quiet

    quiet()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    key = digest_json(digest_folder(folder))  # what it is loaded as
    manifest = {"key": key, "schema": "Model", "digest": key, "rows": 0, "files": {}, "external": str(folder)}
    return Artifact(store, f"external-{key[:16]}", manifest)


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>"]


def wrapped(inner: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unk|>"
    )
    made.chat_template = TEMPLATE
    return made


def words(count: int) -> Any:
    """A tokenizer of `w0`, `w1`, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(count))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    inner.add_special_tokens(SPECIAL[:4])
    return wrapped(inner)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


class World:
    """Answers of three to six words, each word worth something; people rank by Plackett-Luce on the sum."""

    def __init__(self, seed: int, size: int = 24) -> None:
        self.random = np.random.default_rng(seed)
        self.worth = self.random.normal(0, 0.8, size)

    def answer(self) -> NDArray[np.int64]:
        return self.random.choice(len(self.worth), size=int(self.random.integers(3, 7)), replace=False)

    def rank(self, answers: Sequence[NDArray[np.int64]], at_random: bool = False) -> list[int]:
        noise = self.random.gumbel(size=len(answers))
        utility = noise if at_random else noise + [self.worth[a].sum() for a in answers]
        return [int(place) + 1 for place in np.argsort(np.argsort(-utility))]

    def row(
        self, name: str, prompt: int, answers: Sequence[NDArray[np.int64]], ranks: list[int], annotator: str
    ) -> Any:
        return {
            "id": name,
            "prompt_id": f"p{prompt}",
            "prompt": user(f"w{prompt % len(self.worth)}"),
            "candidates": [f"{prompt}-{i}" for i in range(len(answers))],
            "completions": [" ".join(f"w{word}" for word in answer) for answer in answers],
            "ranks": ranks,
            "annotator": annotator,
            "annotator_kind": "person",
        }
