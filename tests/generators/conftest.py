"""A tiny random Llama with a tokenizer of its own, and one vLLM engine for all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def build_model(
    folder: Path, tied: bool = True, chat: bool = True, seed: int = 0, context: int = 128, **shape: Any
) -> Path:
    """Save a Llama of random weights (byte-level BPE, `<|end|>` as EOS) in the Hugging Face layout."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["What is the capital of France? Paris."],
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=SPECIAL[1:]
    )
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                **{
                    "vocab_size": len(tokenizer),
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "max_position_embeddings": context,
                    "tie_word_embeddings": tied,
                    "initializer_range": 0.3,  # sharp enough that a wrong weight shows
                    "bos_token_id": None,
                    "eos_token_id": tokenizer.eos_token_id,
                    **shape,
                }
            )
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    return build_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template and a tied head."""
    return build_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: no chat template, a head of its own."""
    return build_model(tmp_path_factory.mktemp("models") / "untied", tied=False, chat=False, seed=1)


@pytest.fixture(scope="module")  # an engine holds the process group that others may need
def engine(tiny: Path) -> Iterator[Any]:
    import flask  # noqa: F401  # like llvmlite, full of objects that answer to any name
    import numba  # noqa: F401

    from generators.backends.vllm.engine import VllmEngine

    with VllmEngine(str(tiny), kv_cache_gib=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def log_softmax() -> Callable[[Any, list[int], list[int], float], list[float]]:
    """`log_softmax(model, prompt, completion, temperature)`: what transformers says of every sampled token."""

    def of(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> list[float]:
        import torch

        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        scores_TV = torch.log_softmax(logits_TV.double() / temperature, dim=-1)
        return scores_TV[torch.arange(len(completion)), torch.tensor(completion)].tolist()

    return of


@pytest.fixture
def model(store: Any) -> Callable[[Path], Any]:
    """`model(folder)`: an artifact that holds a copy of this model folder."""
    import shutil

    from engine.execution.worker import carry_out
    from engine.stage.stage import Stage

    class Trained(Stage):
        gives = "Model"
        folder: str

        def run(self, job: Any) -> None:
            shutil.copytree(self.folder, job.output, dirs_exist_ok=True)

    return lambda folder: carry_out(store, "trained", Trained(folder=str(folder)), {})


@pytest.fixture(scope="session")
def tiny_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for an answer in JSON."""
    return build_model(tmp_path_factory.mktemp("models") / "wide", seed=2, context=512)


@pytest.fixture(scope="module")  # an engine holds the process group that others may need
def wide(tiny_wide: Path) -> Iterator[Any]:
    from generators.backends.vllm.engine import VllmEngine

    with VllmEngine(str(tiny_wide), kv_cache_gib=1) as engine:
        yield engine


@pytest.fixture
def among_namesakes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder whose contents have the names of our packages and of the standard library's modules."""
    folder = tmp_path_factory.mktemp("namesakes")
    for name in ("engine/__init__.py", "generators/__init__.py", "tokenize.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('a process of ours imported what merely lies here')")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # an empty entry is the working folder
