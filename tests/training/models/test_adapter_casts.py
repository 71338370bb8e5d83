"""What PEFT casts and autocast casts back: left out, not a bit changes, and less is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora.layer import LoraLayer

from tests.training import tiny_chat
from tests.training.tiny_chat import one_thread
from training.models import patches
from training.models.lora import peft_config
from training.models.lora_settings import Lora

__all__ = ["one_thread"]  # applies to every test here


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"dropout": 0.5}], ids=str)
def test_an_adapter_learns_the_same_and_keeps_less(monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any]) -> None:
    ids = torch.randint(5, 28, (3, 40), generator=torch.Generator().manual_seed(0))
    found: list[list[torch.Tensor]] = []
    kept: list[int] = []
    for ours in (False, True):
        monkeypatch.setattr(LoraLayer, "_cast_input_dtype", patches._cast)  # pyright: ignore[reportPrivateUsage]
        config = peft_config(Lora(r=4, **lora))
        if not ours:
            monkeypatch.setattr(LoraLayer, "_cast_input_dtype", patches._cast)  # pyright: ignore[reportPrivateUsage]
        torch.manual_seed(0)
        model: Any = get_peft_model(tiny_chat.policy().to(torch.bfloat16), config).train()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            logits = model(input_ids=ids).logits
        logits.float().pow(2).mean().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.requires_grad)])
        kept.append(sum(storages.values()))
    for theirs, own in zip(*found, strict=True):
        assert torch.equal(theirs, own)
    assert any(grad.abs().max() > 0 for grad in found[1][1:])
    assert lora or kept[1] < 0.97 * kept[0]
