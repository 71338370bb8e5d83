"""Our decoder is transformers' decoder: the same logits, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from training.pretrain.llama import IGNORE, HeadLoss, Llama, decoder_config, document_mask
from training.pretrain.size import Size

FAMILIES = ["llama", "qwen3"]


def pair(family: Any, **size: Any) -> tuple[Llama, Any]:
    torch.manual_seed(0)
    config = decoder_config(
        Size(**{"depth": 2, "width": 32, "heads": 4, **size}), family, 98, 64, 97, 97
    )  # transformers gives the pad row no gradient
    reference = AutoModelForCausalLM.from_config(config)
    model = Llama(config)
    model.load_state_dict(reference.state_dict())
    return model, reference


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [{}, {"kv_heads": 2}, {"tied": False}], ids=str)
def test_logits_loss_and_gradients_equal_those_of_transformers(family: str, size: dict[str, Any]) -> None:
    model, reference = pair(family, **size)
    tokens_BT = torch.randint(0, 97, (3, 24))
    targets_BT = torch.randint(0, 97, (3, 24))
    targets_BT[0, 5:9] = IGNORE
    logits_BTV = reference(tokens_BT).logits
    torch.testing.assert_close(model(tokens_BT), logits_BTV, atol=2e-6, rtol=2e-5)

    expected = torch.nn.functional.cross_entropy(logits_BTV.view(-1, 98), targets_BT.view(-1), reduction="sum")
    loss = model(tokens_BT, targets_BT)
    torch.testing.assert_close(loss, expected)
    expected.backward()
    loss.backward()
    ours = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        assert (ours[name].grad - parameter.grad).abs().max() < 1e-5 * parameter.grad.abs().max(), name


def test_head_loss_is_exact_in_double_precision_and_in_slices(monkeypatch: Any) -> None:
    monkeypatch.setattr("training.pretrain.llama.LOGITS_AT_ONCE", 3 * 7)  # three rows at a time
    x_ND = torch.randn(8, 5, dtype=torch.float32, requires_grad=True)
    weight_VD = torch.randn(7, 5, requires_grad=True)
    targets_N = torch.tensor([0, 6, IGNORE, 2, 2, IGNORE, 1, 5])
    loss = HeadLoss.apply(x_ND, weight_VD, targets_N)
    expected = torch.nn.functional.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="sum", ignore_index=IGNORE)
    torch.testing.assert_close(loss, expected)
    for ours, truth in zip(
        torch.autograd.grad(3 * loss, (x_ND, weight_VD)),
        torch.autograd.grad(3 * expected, (x_ND, weight_VD)),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_it_is_the_same(family: str) -> None:
    model, _ = pair(family, kv_heads=2)
    tokens_BT = torch.randint(0, 97, (2, 16))
    gradients: list[list[torch.Tensor]] = []
    # All that tracing does, without a C++ compiler.
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        loss = forward(tokens_BT, tokens_BT, torch.arange(16)[None] // 5)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_a_masked_document_is_what_it_would_be_alone() -> None:
    model, _ = pair("llama")
    first, second = torch.randint(0, 97, (1, 10)), torch.randint(0, 97, (1, 14))
    numbers = torch.tensor([[0] * 10 + [1] * 14])
    packed = torch.cat([first, second], dim=1)
    x = model.model.embed_tokens(packed)
    cos, sin = model.angles(24, x.device)
    for layer in model.model.layers:
        x = layer(x, cos, sin, document_mask(numbers))
    together = model.lm_head(model.model.norm(x))
    # Rotary positions are relative: the second document need not know where it begins.
    torch.testing.assert_close(together[:, :10], model(first), atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(together[:, 10:], model(second), atol=2e-6, rtol=2e-5)


def test_bfloat16_products_keep_the_loss() -> None:
    model, _ = pair("llama")
    half = Llama(model.config, torch.bfloat16)
    half.load_state_dict(model.state_dict())
    tokens_BT = torch.randint(0, 97, (2, 32))
    exact, rounded = model(tokens_BT, tokens_BT).item(), half(tokens_BT, tokens_BT).item()
    assert rounded != exact and abs(rounded / exact - 1) < 3e-3
