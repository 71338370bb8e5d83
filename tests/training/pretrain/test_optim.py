"""Schedules against their closed forms; Muon's update against its definition."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch

from training.loops.schedule import factor
from training.pretrain import optim, patches
from training.pretrain.llama import decoder_config, initial_model
from training.pretrain.optim import build
from training.pretrain.patches import orthogonalised
from training.pretrain.size import Size


def test_warmup_is_linear_and_ends_at_the_peak() -> None:
    got = [factor(step, 100, "cosine", 4, 0.2, 0.1) for step in range(4)]
    assert got == [0.25, 0.5, 0.75, 1.0]


def test_cosine() -> None:
    assert factor(9, 10, "cosine", 0, 0.2, 0.1) == pytest.approx(0.1)
    assert factor(4, 10, "cosine", 0, 0.2, 0.0) == pytest.approx(0.5)  # halfway: cos(pi/2) = 0
    for step in range(2, 12):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 1) / 10)) / 2
        assert factor(step, 12, "cosine", 2, 0.2, 0.1) == pytest.approx(expected)


def test_wsd_is_flat_then_a_straight_line() -> None:
    got = [factor(step, 10, "wsd", 0, 0.4, 0.2) for step in range(10)]
    assert got == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_constant() -> None:
    assert {factor(step, 10, "constant", 0, 0.4, 0.2) for step in range(10)} == {1.0}


def test_muon_gives_matrices_an_orthogonal_step_and_leaves_the_rest_to_adamw() -> None:
    config = decoder_config(Size(depth=1, width=32, heads=2), "llama", 50, 16, 0, 0)
    model = initial_model(config, 0, torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = build(model, "muon", 0.01, 0.0, (0.9, 0.95), 0.95)
    tokens = torch.randint(0, 50, (2, 16))
    model(tokens, tokens).backward()
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in model.named_parameters():
        update = parameter.detach() - before[name]
        if ".layers." in name and parameter.ndim == 2:
            # Newton-Schulz with Jordan's coefficients brings every singular value into about [0.7, 1.2]
            values = torch.linalg.svdvals(update) / (0.01 * 0.2 * math.sqrt(max(parameter.shape)))
            assert values[: len(values) // 2].min() > 0.5 and values.max() < 1.3, name
        else:
            moved = update[update != 0].abs()
            assert moved.median() == pytest.approx(0.01, rel=0.05), name  # Adam's first step is lr * sign


def test_initial_weights_are_a_function_of_the_seed() -> None:
    config = decoder_config(Size(depth=2, width=64, heads=2), "qwen3", 50, 16, 0, 0)
    same, again, other = (initial_model(config, seed, torch.float32).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    down = same["model.layers.0.mlp.down_proj.weight"]
    assert float(down.std()) == pytest.approx(down.shape[1] ** -0.5 / 2, rel=0.05)  # sqrt(2 * 2 layers) = 2


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_float32_orthogonalises_as_torch_does_in_bfloat16(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours = orthogonalised(gradient, (3.4445, -4.775, 2.0315), 5, 1e-7)
    singular = torch.linalg.svdvals(ours)
    assert ours.dtype == torch.float32 and singular.min() > 0.5 and singular.max() < 1.3
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    assert (ours - left @ right).norm() / ours.norm() < 0.3  # the same directions, not quite of length 1
    # `ours` is a polynomial of the singular values alone, so it commutes with them: U^T ours V is diagonal.
    inner = left.T @ ours @ right.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-4


def test_without_bfloat16_units_muon_goes_by_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []

    def counted(gradient: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(gradient.shape)
        return orthogonalised(gradient, *rest)

    muon = import_module("torch.optim._muon")
    monkeypatch.setattr(muon, "_zeropower_via_newtonschulz", None)  # put back at the end
    monkeypatch.setattr(optim, "has_bfloat16_units", lambda: False)
    monkeypatch.setattr(patches, "orthogonalised", counted)
    model = initial_model(decoder_config(Size(depth=1, width=32, heads=2), "llama", 50, 16, 0, 0), 0, torch.float32)
    tokens = torch.randint(0, 50, (2, 16))
    optimizers = build(model, "muon", 0.01, 0.0, (0.9, 0.95), 0.95)
    model(tokens, tokens).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert seen == [p.shape for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
