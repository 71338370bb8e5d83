"""The planner's counts against what torch, PEFT and autograd really hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training import memory
from training.llama import Llama
from training.lora import Lora
from training.model_config import Size
from training.optim import build

GIB = 2**30
BIG = {"depth": 24, "width": 2048, "heads": 16}  # 1.3B


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("size", [{}, {"kv_heads": 2}, {"tied": False}], ids=str)
def test_weights_gradients_and_optimizer_are_counted_exactly(family: Any, size: dict[str, Any]) -> None:
    config = Size(**{"depth": 3, "width": 64, "heads": 4, **size}).config(family, 211, 32, 0, 0)
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
    config = Size(depth=4, width=128, heads=4).config("llama", 300, 64, 0, 0)
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

    config = Size(depth=2, width=64, heads=4, kv_heads=2).config("llama", 211, 32, 0, 0)
    adapted: Any = get_peft_model(AutoModelForCausalLM.from_config(config), Lora(r=4).config())
    assert memory.adapter_weights(config, 4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_what_does_not_fit_in_full_fits_as_an_adapter() -> None:
    config = Size(**BIG).config("llama", 32_000, 2048, 0, 0)
    ways = {fit.method: fit for fit in memory.propose(config, 8 * GIB, 16, 1024)}
    assert "full" not in ways and ways["lora"].batch * ways["lora"].accumulate == 16
    assert ways["qlora"].memory.weights < ways["lora"].memory.weights / 4
    full = memory.propose(config, 80 * GIB, 16, 1024)[0]
    assert full.method == "full" and full.memory.total <= 0.9 * 80 * GIB
    # 16 bytes a weight for mixed-precision AdamW (Rajbhandari et al. 2020, arXiv:1910.02054, 3.1)
    state = full.memory.total - full.memory.activations
    assert state == 16 * memory.parameters(config)
