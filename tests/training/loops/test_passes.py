"""However a step is cut into passes, and whether activations are kept or made again, it is the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.execution.worker import carry_out
from engine.stage.stage import load
from engine.store.store import Store
from tests.training import tiny_chat
from tests.training.curves import losses
from tests.training.preference_rows import preferences
from tests.training.tiny_chat import assistant, one_thread, user
from training.loops.passes import cut, groups

__all__ = ["one_thread"]  # applies to every test here

CHATS = [{"id": str(i), "messages": [*user("what ?"), *assistant("blue " * (i % 5 + 1))]} for i in range(14)]
STAGES: dict[str, tuple[str, str, str, list[dict[str, Any]]]] = {
    "sft": ("model", "conversations", "Conversation", CHATS),
    "dpo": ("policy", "preferences", "Preference", preferences(13)),  # the last batch of an epoch is a short one
    "kto": ("policy", "preferences", "Preference", preferences(13)),
    "reward": ("model", "preferences", "Preference", preferences(13)),
}


def test_groups_hold_every_example_once_by_length_and_within_bounds() -> None:
    lengths = [5, 3, 9, 3, 40, 8]
    assert list(groups(lengths, 20)) == [[1, 3, 0], [5, 2], [4]]  # the last is longer than a pass: alone
    assert list(groups(lengths, 20, rows=2)) == [[1, 3], [0], [5], [2], [4]]
    assert list(groups(lengths, 1, most=4)) == [[1, 3, 0, 5], [2, 4]]


def test_a_part_has_its_rows_without_the_columns_that_are_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"input_ids": torch.arange(16).view(4, 4), "attention_mask": mask, "label": [True, False, True, False]}
    parts = list(cut(inputs, 0, 2, pairs=False))
    assert [share for _, share in parts] == [0.5, 0.5]
    assert parts[0][0]["input_ids"].tolist() == [[4, 5], [12, 13]] and parts[0][0]["label"] == [False, False]
    assert parts[1][0]["input_ids"].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    (pair, _), _ = cut(inputs, 0, 1, pairs=True)  # row 1 is compared with row 3
    assert pair["input_ids"].tolist() == [[4, 5], [12, 13]]


@pytest.mark.parametrize("kind", STAGES)
def test_a_step_is_the_same_however_it_is_cut(store: Store, tmp_path: Path, given: Any, build: Any, kind: str) -> None:
    port, source, made_of, rows = STAGES[kind]
    policy = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))
    inputs = {port: policy, source: given(made_of, rows)}
    made = [build(kind, inputs, batch=4, lr=3e-3, **way) for way in ({}, {"micro_batch": 1}, {"micro_batch": 2, "recompute": True})]  # fmt: skip
    curves = [losses(one) for one in made]
    assert len(curves[0]) > 2
    weights = [load_file(one.path / "model.safetensors") for one in made]
    for curve, after in zip(curves[1:], weights[1:], strict=True):
        assert curve == pytest.approx(curves[0], abs=2e-5)
        for name, tensor in weights[0].items():
            assert torch.allclose(after[name], tensor, atol=2e-4), name


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_activations_that_are_made_again_change_no_byte(tmp_path: Path, given: Any, kind: str) -> None:
    port, source, made_of, rows = STAGES[kind]
    folder, data = tiny_chat.save(tmp_path / "policy"), given(made_of, rows)
    digests: set[str] = set()
    for number, recompute in enumerate((False, True)):
        store = Store(str(tmp_path / f"store{number}"))
        inputs = {port: {"m": tiny_chat.artifact(store, folder)}, source: {"d": data}}
        stage = load(kind).model_validate({"batch": 4, "lr": 3e-3, "seed": 0, "lora": {"r": 4}, "recompute": recompute})
        digests.add(carry_out(store, kind, stage, inputs).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_a_bfloat16_model_comes_out_as_one_and_learns_as_in_float32(
    store: Store, tmp_path: Path, given: Any, build: Any, kind: str
) -> None:
    port, source, made_of, rows = STAGES[kind]
    policy = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy", dtype="bfloat16"))
    inputs = {port: policy, source: given(made_of, rows)}
    for way in ({}, {"lora": {"r": 4}}):
        made = [build(kind, inputs, batch=4, lr=1e-3, dtype=dtype, **way) for dtype in ("float32", "bfloat16")]
        exact, half = (losses(one) for one in made)
        assert half == pytest.approx(exact, rel=0.03, abs=0.01) and half != exact
        for one in made:
            assert {tensor.dtype for tensor in load_file(one.path / "model.safetensors").values()} == {torch.bfloat16}


def test_the_frozen_weights_of_an_adapter_are_as_wide_as_on_disk(
    store: Store, tmp_path: Path, given: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.sft import work

    seen: list[torch.dtype] = []
    load = work.load_model
    monkeypatch.setattr(work, "load_model", lambda *a, **k: (found := load(*a, **k), seen.append(found[0].dtype))[0])
    policy = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy", dtype="bfloat16"))
    inputs = {"model": policy, "conversations": given("Conversation", CHATS)}
    for dtype, lora in (("bfloat16", {"r": 4}), ("bfloat16", None), ("float32", {"r": 4})):
        build("sft", inputs, batch=4, steps=1, dtype=dtype, lora=lora)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
