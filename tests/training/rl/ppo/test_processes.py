"""PPO over two processes (gloo) is that of one, split or not, and goes on after SIGKILL."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.parquet import read_parquet
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.processes import alone
from tests.training.stock_sampler import StockSampler
from tests.training.tiny_chat import PROMPTS, one_thread
from training.loops.distributed import turns
from training.models.answers import EncodedAnswer
from training.rl.ppo.stage import Ppo

__all__ = ["alone", "one_thread"]  # apply to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]

# Minibatches of 2, 1, 1 and 1 answers: one process has nothing to do in most of them.
CONFIG: dict[str, Any] = {"seed": 3, "dtype": "float32", "iterations": 2, "rollouts": 5, "max_tokens": 4, "lr": 1e-3,
                          "rules": {"right": "completion = reference", "short": "-0.1 * LENGTH(completion)"}}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def fresh() -> None:
    """The process to fork from, which other tests may have left there, knows what PPO imports."""
    forkserver._forkserver._stop()  # pyright: ignore


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """In rank 0; the other processes know nothing of it, and sample nothing."""

    def lend(*_: Any) -> Any:
        return StockSampler(tiny_chat.policy())

    monkeypatch.setattr("training.rl.ppo.loop.start_engine", lend)


@pytest.fixture
def inputs(store: Store, tmp_path: Path, given: Given) -> dict[str, dict[str, Artifact]]:
    policy = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))
    return {"policy": {"p": policy}, "prompts": {"d": given("Prompt", PROMPTS)}}


def stage(**config: Any) -> Ppo:
    merged: dict[str, Any] = {**CONFIG, **config}
    return Ppo(**merged)


def train(
    folder: Path, inputs: dict[str, dict[str, Artifact]], **config: Any
) -> tuple[Artifact, dict[str, torch.Tensor], dict[int, dict[str, float]]]:
    """The artifact, its weights and its curves, made in a store of its own."""
    curves: dict[int, dict[str, float]] = {}

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "metric":
            curves.setdefault(event["step"], {}).update(event)

    made = carry_out(Store(str(folder)), "ppo", stage(**config), inputs, emit=emit)
    return made, load_file(made.path / "model.safetensors"), curves


def told(made: Artifact) -> list[list[list[int]]]:
    """What was sampled, iteration by iteration."""
    return [
        read_parquet(file, ["token_ids"])["token_ids"].to_pylist()
        for file in sorted((made.path / "rollouts").glob("*.parquet"))
    ]


@pytest.mark.parametrize(
    "config",
    [
        {
            "sharding": "shard",
            "critic": "shared",
            "max_grad_norm": 1e6,
        },  # a gradient counted twice would not show when it is clipped
        {"sharding": "replicate", "critic": "separate"},
        {"sharding": "shard", "critic": "separate", "guard": {}, "gold_every": 1, "entropy_weight": 0.01},
        {"sharding": "replicate", "lora": {"r": 4}, "lr": 1e-2},
        {"sharding": "shard", "rollouts": 40, "epochs": 4, "minibatches": 1, "lr": 1e-2, "stop_kl": 0.01},
    ],
    ids=["split", "separate", "split, separate, guarded", "adapter", "stopped early"],
)
def test_two_processes_train_the_policy_of_one(
    tmp_path: Path, inputs: dict[str, dict[str, Artifact]], given: Given, sampler: None, config: dict[str, Any]
) -> None:
    if "guard" in config:
        inputs["held_out"] = {"h": given("Prompt", PROMPTS[:3])}
        config = {**config, "gold": {"short": "-1.0 * length"}}
    alone, truth, expected = train(tmp_path / "one", inputs, **config)
    together, weights, curves = train(tmp_path / "two", inputs, processes=2, **config)
    assert told(together) == told(alone) and len(told(alone)) == 2
    assert together.manifest["summary"] == pytest.approx(alone.manifest["summary"], abs=1e-6)
    start = dict(tiny_chat.policy().named_parameters())
    assert weights.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)
    moved = max(float((truth[name] - start[name]).detach().abs().max()) for name in truth)
    kept = alone.manifest["summary"].get("kept_iteration")
    assert moved > 1e-3 or kept == 0
    for step, known in expected.items():
        for name, value in known.items():
            told_of_machine = name == "memory_gib" or name.startswith("seconds")
            if isinstance(value, float) and not math.isnan(value) and not told_of_machine:
                assert curves[step][name] == pytest.approx(value, abs=1e-4, rel=1e-3), (step, name)
    if "stop_kl" in config:
        assert 0 < expected[2]["steps"] < 4
        assert expected[2]["step_kl"] > config["stop_kl"]  # the value that ended the iteration


def test_the_checkpoint_of_two_processes_is_gone_on_from_by_one(
    tmp_path: Path, inputs: dict[str, dict[str, Artifact]], sampler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, truth, _ = train(tmp_path / "one", inputs, iterations=3, decay=False)
    job = Job(Store(str(tmp_path / "two")), "moved", "Model", inputs, 3)
    stage(decay=False, processes=2, sharding="shard").run(job)
    before = (job.scratch / "checkpoints/step-00000002").stat().st_mtime_ns
    events: list[dict[str, Any]] = []
    job.emit = events.append
    stage(iterations=3, decay=False).run(job)
    assert [e["step"] for e in events if e["event"] == "metric"] == [3]
    assert (job.scratch / "checkpoints/step-00000002").stat().st_mtime_ns == before
    for name, value in load_file(job.output / "model.safetensors").items():
        torch.testing.assert_close(value, truth[name], atol=1e-5, rtol=0)


def test_what_goes_wrong_in_one_process_ends_them_all(
    tmp_path: Path, inputs: dict[str, dict[str, Artifact]], sampler: None
) -> None:
    with pytest.raises(UserError, match="NaN or infinite for 5 of 5"):
        train(tmp_path / "two", inputs, processes=2, rules={"bad": "LN(length - 10)"})
    assert not multiprocessing.active_children() and not dist.is_initialized()


def test_all_processes_have_as_many_turns_and_every_answer_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for lengths in ([5], [3, 1], [1, 2, 3, 9_000, 9_000, 9_000, 9_001], [1] * 7, [16_000] * 4 + [1]):
        answers = [EncodedAnswer([1], [2] * length) for length in lengths]
        monkeypatch.setattr("training.loops.distributed.world", lambda: 3)
        mine = list[list[tuple[list[int], float]]]()
        for number in range(3):
            monkeypatch.setattr("training.loops.distributed.rank", lambda number=number: number)
            mine.append(turns(answers))
        assert len({len(one) for one in mine}) == 1
        counted = [i for one in mine for chunk, counts in one if counts for i in chunk]
        assert sorted(counted) == list(range(len(answers)))
        assert all(chunk for one in mine for chunk, _ in one)


def test_a_turn_that_counts_nothing_changes_nothing(
    tmp_path: Path, inputs: dict[str, dict[str, Artifact]], sampler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tmp_path / "plain", inputs)[0]

    def longer(answers: list[EncodedAnswer], *bounds: Any) -> list[tuple[list[int], float]]:
        return [*turns(answers, *bounds), ([0], 0.0)]

    monkeypatch.setattr("training.loops.distributed.turns", longer)
    assert train(tmp_path / "longer", inputs)[0].digest == plain.digest


def test_an_adapter_is_not_split() -> None:
    with pytest.raises(ValidationError, match="`lora` needs whole matrices: use `sharding: replicate`"):
        stage(lora={"r": 4}, sharding="shard")
    assert stage().identity() == stage(processes=2, sharding="shard").identity()


@pytest.mark.slow
def test_two_processes_and_a_real_engine_survive_sigkill(
    tmp_path: Path, inputs: dict[str, dict[str, Artifact]], store: Store
) -> None:
    """Rank 0 dies; the others and the engine go with it. What goes on ends with the bits of an undisturbed run, which learnt
    from answers sampled a step ahead."""
    prompts = inputs["prompts"]["d"]
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.rl.ppo.stage:Ppo",
        "config": {**CONFIG, "iterations": 4, "rollouts": 16, "processes": 2, "sharding": "shard", "ahead": True},
        "inputs": {"policy": {"p": ["Model", str(inputs["policy"]["p"].path)]}, "prompts": {"d": ["", prompts.id]}},
    }
    killed.start(spec, tmp_path, kill_at=2)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, prompts, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None
    assert resumed.manifest["summary"]["consumed"] == whole.manifest["summary"]["consumed"]
    assert resumed.digest == whole.digest
