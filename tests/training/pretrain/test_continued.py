"""Continued pretraining: from the weights of a model, with its tokenizer, in its type, and told what it forgot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen3Config, set_seed

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.plan.recipe import build_recipe, load_recipe, parse_yaml
from engine.stage.job import Job
from engine.stage.preflight import Glimpse, Preflight
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.tokenize.shards import Shards
from tests.training import killed
from tests.training.tiny import SPECIAL, TEXT, base, blocks, tokenizer, write_shard
from training.pretrain.stage import Pretrain
from training.pretrain.work import Pretraining

GO_ON: dict[str, Any] = {"batch": 4, "steps": 8, "lr": 0.003, "seed": 1, "dtype": "float32"}
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 320, "max_position_embeddings": 64, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE),
    "scaled": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=320, eos_token_id=0, bos_token_id=0),
}


class Chatty(Stage):
    """Gives a model of some architecture in bfloat16, with a chat template and more ids than tokens."""

    gives = "Model"
    which: str = "llama"
    cities: bool = False  # another tokenizer

    def run(self, job: Job) -> None:
        set_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[self.which], dtype=torch.bfloat16)
        model.generation_config.eos_token_id = [4, 0]
        model.save_pretrained(job.output)
        made = tokenizer(290 if self.cities else 300)
        made.chat_template = TEMPLATE
        made.save_pretrained(job.output)


class OldText(Stage):
    """Gives shards of another text than `blocks` does, by the same tokenizer (or another one)."""

    gives = "TokenBlock"
    size: int = 300

    def run(self, job: Job) -> None:
        made = tokenizer(self.size)
        made.save_pretrained(job.output / "tokenizer")
        ids = made.encode("What is it? It is what it is. " * 60)
        tokens = np.array(ids[: len(ids) // 32 * 32]).reshape(-1, 32)
        write_shard(job.output / "data" / "00000.arrow", tokens[:8])
        job.summary(vocab_size=len(made), tokens=256, blocks=8, bytes=0)


def source(store: Store, **config: Any) -> Artifact:
    return carry_out(store, "chatty", Chatty(**config), {})


def bits(folder: Path, shards: Shards) -> float:
    """Bits a byte of these blocks, by transformers alone."""
    model, tokens = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = torch.from_numpy(shards.tokens_BT(range(len(shards))))
    targets = rows[:, 1:].flatten()
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(model(rows).logits[:, :-1].flatten(0, 1), targets, reduction="none")
    text = targets >= len(SPECIAL)
    size = sum(len(tokens.decode([i]).encode()) for i in targets[text].tolist())
    return float(nats[text].sum()) / math.log(2) / size


@pytest.mark.parametrize("which", list(CONFIGS))
def test_a_model_goes_on_and_what_it_forgot_is_told(which: str, store: Store, build: Any) -> None:
    model, new = source(store, which=which), blocks(store)
    old = carry_out(store, "old", OldText(), {})
    made = build(Pretrain, {"tokens": new, "model": model, "retained": old}, **{**GO_ON, "lr": 0.01})
    summary = made.manifest["summary"]
    held_out, retained = Shards(new.path, "validation"), Shards(old.path)
    assert summary["bits_per_byte_before"] == pytest.approx(bits(model.path, held_out), rel=1e-4)
    assert summary["retained_bits_per_byte_before"] == pytest.approx(bits(model.path, retained), rel=1e-4)
    # What is said of the result holds for what was saved, but for its rounding to bfloat16.
    assert summary["bits_per_byte"] == pytest.approx(bits(made.path, held_out), rel=2e-2)
    assert summary["retained_bits_per_byte"] == pytest.approx(bits(made.path, retained), rel=2e-2)
    assert summary["bits_per_byte"] < summary["bits_per_byte_before"] - 0.3
    result = AutoModelForCausalLM.from_pretrained(made.path)
    assert result.dtype == torch.bfloat16 and type(result).__name__ == type(AutoModelForCausalLM.from_pretrained(model.path)).__name__  # fmt: skip
    assert result.generation_config.eos_token_id == [4, 0] and result.config.vocab_size == 320
    assert AutoTokenizer.from_pretrained(made.path).chat_template == TEMPLATE
    assert "retained_bits_per_byte" in made.read_table("logs/metrics.parquet").column_names


@pytest.mark.parametrize("which", list(CONFIGS))
def test_it_starts_from_the_models_weights(which: str, store: Store, build: Any) -> None:
    model = source(store, which=which)
    made = build(Pretrain, {"tokens": blocks(store), "model": model}, **{**GO_ON, "steps": 1, "lr": 1e-12})
    theirs, ours = (load_file(artifact.path / "model.safetensors") for artifact in (model, made))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-9)


def test_by_itself_it_passes_once_over_the_shards_and_more_gently(store: Store) -> None:
    tokens, model = blocks(store), base(store)
    stage = Pretrain(batch=4, dtype="float32")

    def begin(**more: Artifact) -> Pretraining:
        inputs = {"tokens": {"t": tokens}, **{port: {"m": artifact} for port, artifact in more.items()}}
        return Pretraining(stage, Job(store, "pretrain-it", "Model", inputs, 0))

    goes_on, fresh = begin(model=model), begin()
    assert goes_on.steps == len(goes_on.shards) // 4 and fresh.steps > goes_on.steps
    assert goes_on.lr == pytest.approx(min(1e-2, 3e-3 * 128 / 32) / 10)


def test_killed_and_resumed_it_ends_with_the_same_digest(store: Store, tmp_path: Path) -> None:
    model, new, old = source(store), blocks(store), carry_out(store, "old", OldText(), {})
    spec = {
        "store": store.url,
        "stage": "training.pretrain.stage:Pretrain",
        "config": {**GO_ON, "steps": 12, "checkpoint_every": 2, "log_every": 1},
        "inputs": {"tokens": {"t": ["", new.id]}, "model": {"m": ["", model.id]}, "retained": {"r": ["", old.id]}},
    }
    for step in (3, 6, 7):
        killed.start(spec, tmp_path, kill_at=step)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    other = killed.another_store(store, model, tmp_path)
    for artifact in (new, old):
        killed.link(artifact, other)
    whole = killed.start({**spec, "store": other}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None and resumed.digest == whole.digest


def test_shards_of_the_models_own_tokenizer_are_made_by_tokenize(store: Store, build: Any, given: Any) -> None:
    model = source(store)
    texts = given("Document", [{"id": f"{i:032x}", "parents": [], "text": TEXT * 3} for i in range(8)])
    tokens = build("tokenize", {"documents": texts, "tokenizer": model}, block=32, validation=0.3)
    assert build(Pretrain, {"tokens": tokens, "model": model}, **GO_ON).manifest["summary"]["steps"] == 8


@pytest.mark.parametrize(
    ("model", "retained", "config", "words"),
    [
        (
            {"cities": True},
            {},
            {},
            r"chatty-\w+ and the shards blocks-\w+ have different tokenizers.*Tokenise with the model's",
        ),
        ({}, {"size": 290}, {}, r"`retained`, old-\w+, have different tokenizers"),
        ({}, {}, {"size": {"depth": 3}}, "`size` is for a model from random weights"),
        ({}, {}, {"family": "qwen3", "tokens_per_parameter": 1}, "`family` and `tokens_per_parameter` are for"),
        ({"which": "gpt2"}, {}, {"document_mask": True}, "is a GPT2LMHeadModel"),
        ({"which": "gpt2"}, {}, {"optimizer": "muon"}, "Use `adamw`"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: Any, retained: Any, config: Any, words: str, store: Store, build: Any
) -> None:
    old = {"retained": carry_out(store, "old", OldText(**retained), {})} if retained else {}
    with pytest.raises(UserError, match=words):
        build(Pretrain, {"tokens": blocks(store), "model": source(store, **model), **old}, **{**GO_ON, **config})


def test_blocks_longer_than_the_models_context_are_refused(store: Store, build: Any) -> None:
    with pytest.raises(UserError, match="blocks of 80 tokens are longer than the 64"):
        build(Pretrain, {"tokens": blocks(store, block=80), "model": source(store)}, **GO_ON)


def test_the_recipe_in_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    data, lines = parse_yaml(page.split("```yaml\n")[1].split("```")[0], "models.md")
    recipe = build_recipe(data, lines, "models.md", Path())
    assert isinstance(recipe.steps["more"].config, Pretrain)
    load_recipe(Path(__file__).parents[3] / "benchmarks" / "real.yaml")


def test_the_plan_refuses_a_shape_beside_a_model() -> None:
    known = Preflight({"model": [Glimpse("base", "Model")]})
    with pytest.raises(UserError, match="`size`"):
        Pretrain.model_validate({"size": {"depth": 2}}).check(known)
    Pretrain.model_validate({}).check(known)
    Pretrain.model_validate({"size": {"depth": 2}}).check(Preflight())
