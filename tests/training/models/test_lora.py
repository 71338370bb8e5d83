"""Adapters: small, exact when merged, loadable by what comes after."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training.tiny import CONVERSATIONS as ROWS
from tests.training.tiny import SFT as CONFIG
from tests.training.tiny import base
from training.models.load import base_of, load_model
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.sft.stage import Sft


def adapt(store: Store, given: Any, build: Any, **lora: Any) -> tuple[Artifact, Artifact, Job]:
    inputs = {"model": base(store), "conversations": given("Conversation", ROWS)}
    made = build(Sft, inputs, **CONFIG, lora={"r": 4, "merge": False, **lora})
    return inputs["model"], made, Job(store, "next", "Model", {}, 0)


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
def test_merged_logits_are_those_of_the_adapter(store: Store, given: Any, build: Any, lora: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source, made, job = adapt(store, given, build, **lora)
    assert made.kind == "Adapter"
    plain = AutoModelForCausalLM.from_pretrained(source.location)
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        before = plain(tokens).logits
        unmerged = PeftModel.from_pretrained(plain, made.location)(tokens).logits
        model, tokenizer = load_model(made.location, job)
        merged = model(tokens).logits
    assert (unmerged - before).abs().max() > 1e-2  # it did learn something
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=0)
    assert tokenizer.eos_token == "<|end|>" and tokenizer.chat_template


def test_a_merged_run_is_the_unmerged_one_merged(store: Store, given: Any, build: Any) -> None:
    from transformers import AutoModelForCausalLM

    _, made, job = adapt(store, given, build)
    inputs = {"model": base(store), "conversations": given("Conversation", ROWS)}
    whole = build(Sft, inputs, **CONFIG, lora={"r": 4})
    assert whole.kind == "Model"
    ours = AutoModelForCausalLM.from_pretrained(whole.location).state_dict()
    for name, value in load_model(made.location, job)[0].state_dict().items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)


def test_an_adapter_is_small_and_names_what_it_was_trained_on(store: Store, given: Any, build: Any) -> None:
    source, made, job = adapt(store, given, build, r=1, targets=["q_proj", "v_proj"])
    weights = (source.path / "model.safetensors").stat().st_size
    assert (made.path / "adapter_model.safetensors").stat().st_size < 0.1 * weights
    config = json.loads((made.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == source.id
    assert base_of(made.location, job) == source.location
    # 2 layers x 2 targets x (32 + 32) weights of rank 1
    assert made.manifest["summary"]["trainable_share"] == pytest.approx(256 / (256 + parameters(source)))
    for file in made.path.rglob("*"):
        assert not file.is_file() or str(store.root).encode() not in file.read_bytes(), f"{file.name} names a path"


def parameters(artifact: Artifact) -> int:
    from safetensors import safe_open

    with safe_open(artifact.path / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def test_an_adapter_whose_base_is_gone_says_so(store: Store, given: Any, build: Any) -> None:
    import shutil

    source, made, job = adapt(store, given, build)
    shutil.rmtree(source.path)
    with pytest.raises(UserError, match=f"was trained on {source.id}"):
        load_model(made.location, job)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_qlora_without_a_gpu_is_refused(store: Store, given: Any, build: Any) -> None:
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        adapt(store, given, build, quantize=True)


def test_options_reach_peft() -> None:
    config = peft_config(Lora(r=8, alpha=16, dropout=0.1, targets=("q_proj",), dora=True, rslora=True))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.1)
    assert config.target_modules == {"q_proj"} and config.use_dora and config.use_rslora
