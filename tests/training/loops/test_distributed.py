"""Two processes (gloo) give what one gives, and go on from each other's checkpoints."""

from __future__ import annotations

import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.store.store import Store
from tests.training import killed
from tests.training.processes import alone
from tests.training.tiny import PRETRAIN as CONFIG
from tests.training.tiny import blocks
from training.loops import distributed
from training.pretrain import optim
from training.pretrain.llama import decoder_config, initial_model
from training.pretrain.size import Size
from training.pretrain.stage import Pretrain

__all__ = ["alone"]  # applies to every test here


def train(store: Store, **config: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    stage = Pretrain(**{**CONFIG, "steps": 6, **config})
    made = carry_out(store, "pretrain", stage, {"tokens": {"t": blocks(store)}}, emit=events.append)
    return load_file(made.path / "model.safetensors"), [event for event in events if event["event"] == "metric"]


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
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


def _learn_by_muon(number: int, count: int, address: str, file: str) -> None:
    """A process of a test: four steps, orthogonalised in float32, so that nothing is rounded away."""
    torch.set_num_threads(1)
    if count > 1:
        distributed.join(number, count, 0, address)
    optim.has_bfloat16_units = lambda: False
    model = initial_model(decoder_config(Size(depth=1, width=32, heads=2), "llama", 50, 16, 0, 0), 0, torch.float32)
    distributed.spread(model, "shard")
    optimizers = optim.build(model, "muon", 0.01, 0.1, (0.9, 0.95), 0.95)
    tokens_BT = torch.randint(0, 50, (6, 16), generator=torch.Generator().manual_seed(0))[number::count]
    for _ in range(4):
        model(tokens_BT, tokens_BT).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    weights = {name: value.detach() for name, value in distributed.gathered(dict(model.named_parameters())).items()}
    muon, like = import_module("torch.optim._muon"), dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    gradient_RC = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
    update_RC = muon._zeropower_via_newtonschulz(
        distributed.split_like(gradient_RC, like), (3.4445, -4.775, 2.0315), 5, 1e-7
    )
    weights["update"] = distributed.whole(update_RC)
    if number == 0:
        save_file(weights, file)
    if count > 1:
        distributed.leave()


def test_muon_orthogonalises_whole_matrices_that_are_split(tmp_path: Path) -> None:
    context, found = killed.ready([__name__]), list[dict[str, torch.Tensor]]()
    for count in (1, 2, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        file = str(tmp_path / f"{count}.safetensors")
        started = [context.Process(target=_learn_by_muon, args=(n, count, address, file)) for n in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join(60)
        assert [process.exitcode for process in started] == [0] * count
        found.append(load_file(file))
    for weights in found[1:]:
        assert torch.equal(weights["update"], found[0]["update"])  # of the same gradient
        for name, value in found[0].items():
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)


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
