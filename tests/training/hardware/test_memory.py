"""The planner's counts against what torch, PEFT and autograd really hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.plan.plan import make_plan
from engine.plan.recipe import load_recipe
from engine.stage.stage import Device
from engine.store.store import Store
from training.hardware import memory
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.preference.dpo_stage import Dpo
from training.pretrain.llama import Llama, decoder_config
from training.pretrain.optim import build
from training.pretrain.size import Size
from training.rl.ppo.stage import Ppo

GIB = 2**30
BIG = {"depth": 24, "width": 2048, "heads": 16}  # 1.3B


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("size", [{}, {"kv_heads": 2}, {"tied": False}], ids=str)
def test_weights_gradients_and_optimizer_are_counted_exactly(family: Any, size: dict[str, Any]) -> None:
    config = decoder_config(Size(**{"depth": 3, "width": 64, "heads": 4, **size}), family, 211, 32, 0, 0)
    model = Llama(config)
    optimizer = build(model, "adamw", 1e-3, 0.1, (0.9, 0.95), 0.95)[0]
    tokens = torch.randint(0, 211, (2, 32))
    model(tokens, tokens).backward()
    optimizer.step()
    need = memory.pretraining(config, 2, 32)
    assert need.weights == 4 * sum(p.numel() for p in model.parameters())
    assert need.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = (v for entry in optimizer.state.values() for k, v in entry.items() if k != "step")
    assert need.optimizer == sum(v.nbytes for v in state)


def test_activations_are_what_autograd_keeps() -> None:
    # In float32: with bfloat16 products a CPU keeps its float32 attention as well.
    config = decoder_config(Size(depth=4, width=128, heads=4), "llama", 300, 64, 0, 0)
    model = Llama(config)
    tokens = torch.randint(0, 300, (8, 64))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, tokens)
    need = memory.pretraining(config, 8, 64, 4).activations
    assert loss.requires_grad
    assert need == pytest.approx(sum(kept.values()), rel=0.1)


def test_adapters_are_counted_as_peft_makes_them() -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    config = decoder_config(Size(depth=2, width=64, heads=4, kv_heads=2), "llama", 211, 32, 0, 0)
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_config(config), peft_config(Lora(r=4)))
    assert memory.adapter_weights(config, 4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_what_does_not_fit_in_full_fits_as_an_adapter() -> None:
    config = decoder_config(Size(**BIG), "llama", 32_000, 2048, 0, 0)
    ways = {fit.method: fit for fit in memory.FineTuning(config, 1024).ways(8 * GIB, 16)}
    assert "full" not in ways and ways["lora"].batch * ways["lora"].accumulate == 16
    assert ways["qlora"].memory.weights < ways["lora"].memory.weights / 4
    full = memory.FineTuning(config, 1024).ways(80 * GIB, 16)[0]
    assert full.method == "full" and full.memory.total <= 0.9 * 80 * GIB
    # 16 bytes a weight for mixed-precision AdamW (Rajbhandari et al. 2020, arXiv:1910.02054, 3.1)
    state = full.memory.weights + full.memory.gradients + full.memory.optimizer
    assert state == 16 * memory.parameters(config)


RECIPE = """
name: planned
stages:
  words: {kind: read, paths: ["*.txt"]}
  shards: {kind: tokenize, from: words, vocab_size: 32000, block: 2048}
  base: {kind: pretrain, from: shards, size: {depth: 24, width: 2048, heads: 16}, batch: 64}
  sft: {kind: sft, from: {model: base, conversations: ./chats.jsonl}, batch: 16, max_length: 2048}
"""


@pytest.fixture
def needs(tmp_path: Path, store: Store) -> Any:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def plan(gpu: float, *settings: str) -> dict[str, str]:
        recipe = load_recipe(tmp_path / "recipe.yaml", list(settings))
        planned = make_plan(recipe, store, device=Device("a GPU", int(gpu * GIB), gpu=True))
        return {stage.name: stage.forecast["needs"] for stage in planned if "needs" in stage.forecast}

    return plan


def test_the_plan_says_what_fits_and_what_it_proposes_does(needs: Any) -> None:
    """No artifact is there yet: the model's shape follows from the recipe alone."""
    roomy, small = needs(80), needs(16)
    assert roomy["base"].startswith("1,279,887,360 weights at 64 x 2048 tokens")
    assert "`micro_batch: 8` (x 8: 58.9 GiB)" in roomy["base"] and "micro_batch: 8" not in small["base"]
    assert "DOES NOT FIT" not in roomy["sft"]
    assert "full at 6 x 2048 tokens: 23.8 GiB" in small["sft"] and "DOES NOT FIT" in small["sft"]
    assert "`lora: {r: 16}, micro_batch: 8` (x 2: 10.4 GiB)" in small["sft"]
    taken = needs(16, "sft.lora={r: 16}", "sft.micro_batch=8")["sft"]
    assert "lora at 8 x 2048 tokens: 10.4 GiB" in taken and "DOES NOT FIT" not in taken


def test_alignment_is_planned_for_with_the_models_beside_it(needs: Any, tmp_path: Path) -> None:
    """GiB of float32 weights, gradients and moments: 4.77 each a model, 4 of them trained, 1 of one that only looks."""
    (tmp_path / "asked.jsonl").write_text('{"prompt": [{"role": "user", "content": "a"}]}')
    (tmp_path / "pairs.jsonl").write_text("{}")
    text = (
        RECIPE
        + "  rm: {kind: reward, from: {model: sft, preferences: ./pairs.jsonl}, batch: 4}\n"
        + "  ppo: {kind: ppo, from: {policy: sft, reward: rm, prompts: ./asked.jsonl}, gpu_share: 0.5}\n"
        + "  kto: {kind: kto, from: {policy: sft, preferences: ./pairs.jsonl}, batch: 2}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    told = needs(80)
    assert "full at 8 x 1024 tokens" in told["rm"] and "weights 4.8 GiB" in told["rm"]  # four pairs are eight answers
    assert (
        "weights 9.5 GiB" in told["ppo"] and "sampler and reward 4.8 GiB" in told["ppo"]
    )  # the reference, the reward model
    assert "full at 32 x 81 tokens" in told["ppo"]  # a prompt is as long as its characters say
    assert "of 40.0 GiB" in told["ppo"]  # the other half is for sampling
    assert "full at 2 x 1024 tokens" in told["kto"] and "weights 9.5 GiB" in told["kto"]
    small = needs(16)
    assert "What does: `lora: {r: 16}, micro_batch: 4` (x 1: 7.3 GiB)" in small["rm"]
    assert "`lora: {r: 16}, micro_batch: 2` (x 1: 6.3 GiB)" in small["kto"]


def test_a_shape_that_can_not_be_is_refused_by_the_plan(needs: Any) -> None:
    with pytest.raises(UserError, match="stage `base`: a width of 2048 can't be cut into 15 heads"):
        needs(80, "base.size={depth: 24, width: 2048, heads: 15}")


def test_a_model_in_a_folder_is_planned_for(needs: Any, tmp_path: Path) -> None:
    shape = Size(depth=2, width=64, heads=2, tied=False)
    folder = tmp_path / "model"
    folder.mkdir()
    decoder_config(shape, "llama", 300, 128, 0, 0).save_pretrained(folder)
    recipe = RECIPE.replace("model: base", "model: ./model")
    (tmp_path / "recipe.yaml").write_text(recipe)
    config = decoder_config(shape, "llama", 300, 128, 0, 0)
    assert needs(80)["sft"].startswith(f"{memory.parameters(config):,} weights, full at 16 x 128 tokens")


def test_preferences_need_two_rows_a_pair_and_a_reference_unless_an_adapter_is_trained(
    needs: Any, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    (tmp_path / "recipe.yaml").write_text(
        RECIPE + "  dpo: {kind: dpo, from: {policy: sft, preferences: ./pairs.jsonl}, batch: 8, max_length: 512}\n"
    )
    config = decoder_config(Size(**BIG), "llama", 32_000, 2048, 0, 0)
    count = memory.parameters(config)
    full, lora = needs(80)["dpo"], needs(80, "dpo.lora={r: 16}")["dpo"]
    alone = memory.FineTuning(config, 512).memory(16).total
    assert f"full at 16 x 512 tokens: {memory.gibibytes(alone + 4 * count)} " in full
    adapted = memory.FineTuning(config, 512, "lora").memory(16).total
    assert f"lora at 16 x 512 tokens: {memory.gibibytes(adapted)} " in lora


def test_split_over_processes_only_the_reward_model_stays_whole() -> None:
    shape = Size(**BIG).settings(32_000)
    known = {"config": {"model_type": "llama", **shape, "max_position_embeddings": 2048}}
    device = Device("a GPU", 80 * 2**30, True)

    def told(**config: Any) -> str:
        stage = Ppo(rollouts=128, minibatches=4, max_tokens=64, **config)
        return stage.forecast({"policy": [known], "reward": [known]}, device)["needs"]

    config = decoder_config(Size(**BIG), "llama", 32_000, 2048, 0, 0)
    count = memory.parameters(config)
    alone, split = (memory.FineTuning(config, 128, masked=False).memory(at_once) for at_once in (32, 8))
    assert f"full at 32 x 128 tokens: {memory.gibibytes(alone.total + 8 * count)} " in told()
    states = 12 * count / 4 + 4 * count / 4 + 4 * count  # of the policy, the reference, the reward model
    # In the only pass of a step gradients come as activations go.
    expected = memory.gibibytes(max(split.activations, 4 * count / 4) + states)
    assert f"full at 8 x 128 tokens: {expected} " in told(processes=4, sharding="shard")


def test_each_process_has_its_part_of_a_step_and_of_a_split_model() -> None:
    known = {"config": {"model_type": "llama", **Size(**BIG).settings(32_000), "max_position_embeddings": 2048}}
    config = decoder_config(Size(**BIG), "llama", 32_000, 2048, 0, 0)
    count = memory.parameters(config)
    gpu, machine = Device("a GPU", 80 * GIB, True), Device("this machine", 200 * GIB, False)

    def told(device: Device, **settings: Any) -> dict[str, Any]:
        stage = Dpo(batch=8, max_length=128, dtype="float32", **settings)
        return stage.forecast({"policy": [known]}, device)

    one = told(gpu, micro_batch=8)["parts"]
    assert told(gpu, processes=4, micro_batch=8)["needs"].startswith(
        f"{count:,} weights, full at 4 x 128 tokens, in each of 4 processes: "  # two pairs
    )
    split = told(gpu, processes=4, sharding="shard", micro_batch=2)["parts"]
    assert (split.weights, split.gradients, split.optimizer) == (8 * count / 4, 4 * count / 4, 8 * count / 4)
    assert one.weights == 8 * count  # the policy and its reference
    adapter = told(gpu, processes=4, sharding="shard", lora={"r": 16})["parts"]
    learnt = memory.adapter_weights(config, 16)
    assert adapter.weights == pytest.approx(4 * (count + learnt) / 4) and adapter.optimizer == 8 * learnt / 4
    # Without GPUs all processes are in the same memory.
    together = told(machine, processes=4, micro_batch=2)
    assert together["memory"] == pytest.approx(4 * together["parts"].total)
    assert f"; all together {memory.gibibytes(together['memory'])}) of 200.0 GiB" in together["needs"]
