"""A checkpoint is whole or it does not exist."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import StageFailed
from training.loops.checkpoint import (
    RECORD,
    STATE,
    Checkpoint,
    Checkpoints,
    optimizer_tensors,
    random_state,
    restore_optimizers,
    restore_random_state,
)
from training.loops.sealed import SEAL
from training.pretrain.normuon import NorMuon


def save(checkpoints: Checkpoints, step: int, score: float | None = None) -> None:
    tensors = {"w": torch.full((1000,), float(step)), "half": torch.ones(3, dtype=torch.bfloat16)}
    checkpoints.save(Checkpoint(step, tensors, {"note": [step]}, score), wait=True)


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_and_only_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 2.6)):
        save(checkpoints, step, score)
    assert steps(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]
    found = Checkpoints(tmp_path).latest()
    assert found is not None and (found.step, found.facts, found.score) == (50, {"note": [50]}, 2.6)
    assert torch.equal(found.tensors["w"], torch.full((1000,), 50.0))
    assert found.tensors["half"].dtype == torch.bfloat16


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: flip(folder / STATE, -1),
        lambda folder: flip(folder / STATE, 3),
        lambda folder: (folder / STATE).write_bytes((folder / STATE).read_bytes()[:100]),
        lambda folder: (folder / STATE).unlink(),
        lambda folder: (folder / RECORD).unlink(),
        lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text().replace('"step": 20', '"step": 21')),
        lambda folder: (folder / RECORD).write_text("{"),
        lambda folder: (folder / SEAL).unlink(),
        lambda folder: (folder / SEAL).write_text("{"),
        lambda folder: (folder / SEAL).write_bytes(b"\xff"),
        lambda folder: (folder / SEAL).write_text("[]"),
        lambda folder: (folder / SEAL).write_text("{}"),
        lambda folder: flip(folder / SEAL, 20),
        lambda folder: flip(folder / RECORD, 5),
    ],
    ids=[
        "bit",
        "header",
        "cut",
        "no state",
        "no record",
        "record",
        "json",
        "no seal",
        "cut seal",
        "seal of bytes",
        "seal of a list",
        "empty seal",
        "seal",
        "record's bit",
    ],
)
def test_a_corrupt_checkpoint_is_noticed_and_the_one_before_used(tmp_path: Path, spoil: Any) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    save(checkpoints, 20)
    spoil(tmp_path / "step-00000020")
    found = checkpoints.latest()
    assert found is not None and found.step == 10
    assert steps(tmp_path) == ["step-00000010"]


def test_a_half_written_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    (tmp_path / "step-00000020.partial").mkdir()
    (tmp_path / "step-00000020.partial" / RECORD).write_text(json.dumps({"step": 20}))
    found = checkpoints.latest()
    assert found is not None and found.step == 10
    save(checkpoints, 20)
    assert steps(tmp_path) == ["step-00000010", "step-00000020"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)

    def full(tensors: Any, filename: Path) -> None:
        Path(filename).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training.loops.checkpoint.save_file", full)
        with pytest.raises(StageFailed, match="No space left on device"):
            save(checkpoints, 20)
    assert steps(tmp_path) == ["step-00000010"]
    assert checkpoints.latest() is not None


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    weight = torch.zeros(1_000_000)
    checkpoints.save(Checkpoint(1, {"w": weight}))
    weight += 1  # training goes on while the write is under way
    checkpoints.wait()
    found = checkpoints.latest()
    assert found is not None and float(found.tensors["w"].sum()) == 0


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [*torch.rand(3).tolist(), *np.random.rand(3), np.random.randn(), random.random(), random.gauss(0, 1)]

    draw()
    tensors, facts = random_state()
    expected = draw()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(1, tensors, facts), wait=True)
    found = checkpoints.latest()
    assert found is not None
    restore_random_state(found.tensors, found.facts)
    assert draw() == expected


@pytest.mark.parametrize(
    ("kind", "more"),
    [(torch.optim.AdamW, {}), (torch.optim.Muon, {}), (NorMuon, {"weight_decay": 0.1, "momentum": 0.9})],
)
def test_an_optimizer_goes_on_bitwise(kind: Any, more: dict[str, float]) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4, bias=False)
        return layer, kind(list(layer.parameters()), lr=0.1, **more)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, scale: float) -> None:
        optimizer.zero_grad()
        (layer(torch.ones(2, 4)) * scale).square().sum().backward()
        optimizer.step()

    layer, optimizer = make()
    for scale in (1.0, 2.0):
        step(layer, optimizer, scale)
    state = optimizer_tensors(layer.named_parameters(), [optimizer])
    other, fresh = make()
    other.load_state_dict(layer.state_dict())
    restore_optimizers({k: v.clone() for k, v in state.items()}, other.named_parameters(), [fresh])
    step(layer, optimizer, 3.0)
    step(other, fresh, 3.0)
    assert torch.equal(layer.weight, other.weight)
