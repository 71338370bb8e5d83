"""An adapter is sampled from unmerged, and gives what the merged model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import UserError
from generators.backends.adapters import base_of, room_for
from generators.backends.protocol import Sampling
from generators.backends.transformers_engine import TransformersEngine
from generators.backends.vllm.engine import VllmEngine
from generators.candidates.stage import Candidates

PROMPTS = [[i % 250 + 4 for i in range(start, start + 3 + start % 9)] for start in range(0, 80, 5)]


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA whose update is large enough to change every answer."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), config)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged(tiny: Path, adapter: Path) -> Any:
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), adapter)
    return model.merge_and_unload()


@pytest.mark.slow
def test_vllm_serves_it_unmerged(tiny: Path, adapter: Path, log_softmax: Any) -> None:
    whole, base = merged(tiny, adapter), AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with VllmEngine(str(tiny), kv_cache_gib=1, adapter=str(adapter)) as engine:
        made = engine.generate(PROMPTS, Sampling(max_tokens=12), range(len(PROMPTS)))
    differs = 0
    for prompt, one in zip(PROMPTS, made, strict=True):
        assert one.logprobs == pytest.approx(log_softmax(whole, prompt, one.token_ids), abs=1e-4)
        differs += one.logprobs != pytest.approx(log_softmax(base, prompt, one.token_ids), abs=1e-2)
    assert differs == len(PROMPTS)


def test_candidates_of_an_adapter_artifact(
    given: Any, build: Any, store: Any, model: Any, tiny: Path, adapter: Path, log_softmax: Any, tmp_path: Path
) -> None:
    """The artifact names its base by id; its rows name the adapter."""
    import shutil

    from engine.execution.worker import carry_out
    from engine.stage.stage import Stage

    base = model(tiny)
    named = tmp_path / "named"
    shutil.copytree(adapter, named)
    for file in tiny.glob("*token*"):
        shutil.copy(file, named)
    config = json.loads((named / "adapter_config.json").read_text())
    (named / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base.id}))

    class Trained(Stage):
        gives = "Adapter"

        def run(self, job: Any) -> None:
            shutil.copytree(named, job.output, dirs_exist_ok=True)

    artifact = carry_out(store, "lora", Trained(), {})
    assert base_of(artifact.location, store) == base.location
    prompts = given("Prompt", [{"id": "a" * 32, "parents": [], "prompt": [{"role": "user", "content": "Say it!"}]}])
    made = build(Candidates, {"model": artifact, "prompts": prompts}, n=3, max_tokens=9, engine="transformers")
    whole = merged(tiny, adapter)
    for row in made.to_table().to_pylist():
        assert row["model"] == artifact.id
        expected = log_softmax(whole, row["prompt_token_ids"], row["token_ids"])
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)


def test_what_vllm_cannot_serve_unmerged_is_told(adapter: Path, tmp_path: Path) -> None:
    assert room_for(str(adapter)) == 8
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, why in (({"use_dora": True}, "does not serve DoRA"), ({"rank_pattern": {"q": 900}}, "has rank 900")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=why):
            room_for(str(tmp_path))


def test_an_option_vllm_does_not_have_is_told_with_its_nearest_spelling(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"has no option `tensor_paralel_size`. Did you mean `tensor_parallel_size`"):
        VllmEngine(str(tiny), tensor_paralel_size=2)


def test_the_fallback_serves_it_unmerged(tiny: Path, adapter: Path, log_softmax: Any) -> None:
    engine = TransformersEngine(str(tiny), adapter=str(adapter))
    whole = merged(tiny, adapter)
    for prompt, one in zip(PROMPTS, engine.generate(PROMPTS, Sampling(max_tokens=9), range(16)), strict=True):
        assert one.logprobs == pytest.approx(log_softmax(whole, prompt, one.token_ids), abs=1e-4)
