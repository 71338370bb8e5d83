"""Two processes (gloo) give what one gives, and go on from each other's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.store.store import Store
from tests.training.processes import alone
from tests.training.tiny import PRETRAIN as CONFIG
from tests.training.tiny import blocks
from training.pretrain.stage import Pretrain

__all__ = ["alone"]  # applies to every test here


def train(store: Store, **config: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    stage = Pretrain(**{**CONFIG, "steps": 6, **config})
    made = carry_out(store, "pretrain", stage, {"tokens": {"t": blocks(store)}}, emit=events.append)
    return load_file(made.path / "model.safetensors"), [event for event in events if event["event"] == "metric"]


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_train_the_model_of_one(store: Store, tmp_path: Path, sharding: str, optimizer: str) -> None:
    alone, truth = train(store, log_every=1, optimizer=optimizer)
    way: dict[str, Any] = {"processes": 2, "sharding": sharding, "optimizer": optimizer}
    together, metrics = train(Store(str(tmp_path / "two")), **way, log_every=1)
    for ours, expected in zip(metrics, truth, strict=True):
        assert ours["step"] == expected["step"]
        for name in {"loss", "grad_norm", "bits_per_byte"} & expected.keys():
            assert ours[name] == pytest.approx(expected[name], rel=1e-3), (name, ours["step"])
    for name, value in alone.items():  # six Adam steps of 0.01: rounding moves a weight by far less than one of them
        torch.testing.assert_close(together[name], value, atol=2e-3, rtol=0)


def test_one_process_goes_on_from_the_checkpoint_of_two(store: Store, tmp_path: Path) -> None:
    alone, _ = train(store)
    other = Store(str(tmp_path / "other"))
    inputs = {"tokens": {"t": blocks(other)}}
    job = Job(other, "moved", "Model", inputs, 1)
    Pretrain(**{**CONFIG, "steps": 6}, processes=2, sharding="shard", checkpoint_every=3).run(job)
    (saved,) = (job.scratch / "checkpoints").iterdir()
    assert saved.name == "step-00000003"
    (job.output / "model.safetensors").unlink()
    events: list[dict[str, Any]] = []
    job.emit = events.append
    Pretrain(**{**CONFIG, "steps": 6}).run(job)
    assert next(e["done"] for e in events if e["event"] == "progress") == 4
    for name, value in load_file(job.output / "model.safetensors").items():
        torch.testing.assert_close(value, alone[name], atol=2e-3, rtol=0)


def test_what_cannot_be_shared_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="can't be shared by 3"):
        train(store, processes=3)
