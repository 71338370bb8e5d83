"""GRPO over several processes (gloo) is that of one, split or not, with all weights and with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.processes import alone
from tests.training.stock_sampler import StockSampler
from tests.training.tiny_chat import PROMPTS, one_thread
from training.rl.grpo_stage import Grpo
from training.rl.record import consumed

__all__ = ["alone", "one_thread"]  # apply to every test here

# Minibatches of 6 answers, passes of 6, 3 or 2 of them; answers are looked back on twice as old.
CONFIG: dict[str, Any] = {"seed": 3, "dtype": "float32", "iterations": 2, "rollouts": 12, "samples": 4, "max_tokens": 4, "lr": 3e-3,
                          "minibatches": 2, "epochs": 2, "max_grad_norm": 1e6, "rules": {"round": "completion LIKE '%o%'"}}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def forked() -> None:
    """Processes are forked from one that has imported what they need, the same for all files."""
    killed.ready(["training.rl.grpo"])


@pytest.fixture
def inputs(store: Store, tmp_path: Path, given: Any) -> dict[str, dict[str, Artifact]]:
    policy = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))
    return {"policy": {"p": policy}, "prompts": {"d": given("Prompt", PROMPTS)}}


@pytest.fixture(autouse=True)
def stocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In rank 0; the other processes know nothing of it, and sample nothing."""

    def lend(*_: Any) -> Any:
        return StockSampler(tiny_chat.policy())

    monkeypatch.setattr("training.rl.grpo.start_engine", lend)


def stage(**config: Any) -> Grpo:
    return Grpo.model_validate({**CONFIG, **config})


Trained = tuple[Artifact, dict[str, torch.Tensor], list[dict[str, Any]]]


def train(folder: Path, inputs: dict[str, dict[str, Artifact]], **config: Any) -> Trained:
    """The artifact, its weights and its curves, made in a store of its own."""
    events: list[dict[str, Any]] = []
    made = carry_out(Store(str(folder)), "grpo", stage(**config), inputs, emit=events.append)
    return made, load_file(made.path / "model.safetensors"), [e for e in events if e["event"] == "metric"]


@pytest.mark.parametrize(
    "config",
    [
        {
            "sharding": "shard",
            "processes": 3,
            "method": "rloo",
            "beta": 0.1,
        },  # with a reference that is asked in the reward
        {"sharding": "replicate", "processes": 2},
        {"sharding": "shard", "processes": 2, "lora": {"r": 4}, "lr": 1e-2},
        {"sharding": "replicate", "processes": 3, "lora": {"r": 4}, "method": "rloo", "beta": 0.1},
    ],
    ids=["split", "whole", "split adapter", "adapter"],
)
def test_processes_train_the_policy_of_one(
    tmp_path: Path, inputs: dict[str, dict[str, Artifact]], config: dict[str, Any]
) -> None:
    alone = {name: value for name, value in config.items() if name not in ("sharding", "processes")}
    one, truth, expected = train(tmp_path / "one", inputs, **alone)
    together, weights, curves = train(tmp_path / "several", inputs, **config)
    assert together.manifest["summary"] == one.manifest["summary"]  # the same answers were learnt from
    start = dict(tiny_chat.policy().named_parameters())
    assert max(float((truth[name] - start[name]).detach().abs().max()) for name in truth) > 2e-3
    assert weights.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)
    assert len(curves) == len(expected) == 8
    for step, known in zip(curves, expected, strict=True):
        for name in {"loss", "grad_norm", "lr", "score", "kl", "sampler_gap", "reward", "num_tokens"} & known.keys():
            assert step[name] == pytest.approx(known[name], rel=1e-3, abs=1e-5), (name, step["step"])


class Lost(Exception):
    """What ends a run here as a kill would."""


def test_a_run_of_two_goes_on_with_three(tmp_path: Path, inputs: dict[str, dict[str, Artifact]]) -> None:
    one, truth, _ = train(tmp_path / "one", inputs)

    def lose(event: dict[str, Any]) -> None:
        if event["event"] == "metric" and event["step"] == 6:
            raise Lost

    job = Job(Store(str(tmp_path / "moved")), "moved", "Model", inputs, 3, emit=lose)
    with pytest.raises(Lost):
        stage(processes=2, sharding="shard").run(job)
    events: list[dict[str, Any]] = []
    job.emit = events.append
    stage(processes=3).run(job)
    assert [e["step"] for e in events if e["event"] == "metric"] == [5, 6, 7, 8]  # of the second iteration
    assert consumed(job) == (one.manifest["summary"]["consumed"], 24)
    for name, value in load_file(job.output / "model.safetensors").items():
        torch.testing.assert_close(value, truth[name], atol=1e-5, rtol=0)


def test_answers_that_belong_together_are_not_shared() -> None:
    with pytest.raises(ValidationError, match=r"`processes` \(7\) are more than a step has answers \(6\)"):
        stage(processes=7)
    with pytest.raises(ValidationError, match="`bnpo` takes the mean over the tokens that are in memory at once"):
        stage(processes=2, loss="bnpo")
    assert stage(processes=2, loss="bnpo", micro_batch=3).shareable == 2
    assert stage().identity() == stage(processes=2, sharding="shard").identity()
