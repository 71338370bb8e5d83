"""However many processes (gloo) share a step, and whether they split the model, it is the step of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.stage.stage import load
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.loops.test_passes import STAGES
from tests.training.processes import alone
from tests.training.tiny_chat import one_thread
from training.loops.distributed import dealt
from training.loops.passes import groups
from training.sft.work import packed_at_once

__all__ = ["alone", "one_thread"]  # apply to every test here

# More than a few steps, the last of an epoch a short one; no step's gradient is clipped, so that one counted twice shows.
CONFIG: dict[str, Any] = {"batch": 4, "lr": 3e-3, "seed": 0, "dtype": "float32"}
UNCLIPPED = {"sft": {"clip": 1e6}}
# What does not depend on how a step is cut into passes; TRL's means over tokens and over answers of one kind do.
HELD = {"loss", "grad_norm", "lr", "num_tokens", "kl", "accuracy"}


@pytest.fixture(autouse=True, scope="module")
def forked() -> None:
    """Processes are forked from one that has imported what they need, the same for all files."""
    killed.ready()


class Trials:
    """Stages of one kind, trained in stores of their own on the same input."""

    def __init__(self, kind: str, folder: Path, given: Any) -> None:
        self.kind, self.folder = kind, folder
        self.port, self.source, made_of, rows = STAGES[kind]
        self.data = given(made_of, rows)
        self.model = tiny_chat.save(folder / "policy")

    def inputs(self, store: Store) -> dict[str, dict[str, Artifact]]:
        return {self.port: {"m": tiny_chat.artifact(store, self.model)}, self.source: {"d": self.data}}

    def stage(self, **config: Any) -> Any:
        return load(self.kind).model_validate({**CONFIG, **UNCLIPPED.get(self.kind, {}), **config})

    def train(self, name: str, **config: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], Artifact]:
        """Weights, curves and the artifact."""
        events: list[dict[str, Any]] = []
        store = Store(str(self.folder / name))
        made = carry_out(store, self.kind, self.stage(**config), self.inputs(store), emit=events.append)
        return weights(made.path), [event for event in events if event["event"] == "metric"], made


@pytest.fixture
def trials(request: pytest.FixtureRequest, tmp_path: Path, given: Any) -> Trials:
    return Trials(request.param, tmp_path, given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def check_same(ours: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(ours[name], value, atol=atol, rtol=0)


@pytest.mark.parametrize("trials", STAGES, indirect=True)
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_processes_train_the_model_of_one(trials: Trials, lora: dict[str, Any] | None) -> None:
    truth, expected, one = trials.train("one", lora=lora)
    start = load_file(trials.model / "model.safetensors")
    assert max(float((truth[name] - value).abs().max()) for name, value in start.items()) > 1e-3
    ways = [(2, "shard"), (3, "replicate")] if lora else [(2, "replicate"), (3, "shard")]
    for count, sharding in ways:
        ours, curves, made = trials.train(f"{count}", lora=lora, processes=count, sharding=sharding)
        check_same(ours, truth)
        assert len(curves) == len(expected) > 2
        for step, known in zip(curves, expected, strict=True):
            assert known.keys() - {"tokens_per_s"} <= step.keys()
            for name in HELD & known.keys():
                assert step[name] == pytest.approx(known[name], rel=1e-4, abs=1e-5), (name, step["step"])
        assert made.manifest["key"] == one.manifest["key"]


@pytest.mark.parametrize("trials", ["sft"], indirect=True)
def test_packed_rows_are_shared(trials: Trials) -> None:
    packed = {"packing": True, "max_length": 32, "batch": 3, "epochs": 3}
    truth, expected, _ = trials.train("one", **packed)
    ours, curves, _ = trials.train("two", **packed, processes=2, sharding="shard")
    check_same(ours, truth)
    assert [c["loss"] for c in curves] == pytest.approx([e["loss"] for e in expected], abs=1e-5)
    assert [c["num_tokens"] for c in curves] == [e["num_tokens"] for e in expected]


class Killed(Exception):
    """What ends a run here as a kill would: rank 0 is gone, and with it the others."""


def interrupted(trials: Trials, store: Store, after: int, **config: Any) -> Job:
    """A job whose process was ended after so many steps."""

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "metric" and event["step"] == after:
            raise Killed

    job = Job(store, "moved", "Model", trials.inputs(store), 0, emit=emit)
    with pytest.raises(Killed):
        trials.stage(**config).run(job)
    return job


@pytest.mark.parametrize("trials", ["sft", "dpo", "reward"], indirect=True)
def test_a_run_goes_on_with_another_number_of_processes(trials: Trials) -> None:
    way: dict[str, Any] = {"checkpoint_every": 2, "epochs": 2, "lora": {"r": 4} if trials.kind == "sft" else None}
    truth, expected, _ = trials.train("one", **way)
    then = {"sft": {"processes": 3, "sharding": "shard"}, "dpo": {}, "reward": {"processes": 3}}[trials.kind]
    job = interrupted(trials, Store(str(trials.folder / "other")), 3, **way, processes=2, sharding="shard")
    events: list[dict[str, Any]] = []
    job.emit = events.append
    trials.stage(**way, **then).run(job)
    curves = [event for event in events if event["event"] == "metric"]
    assert [c["step"] for c in curves] == [e["step"] for e in expected[2:]]  # it went on after the second
    for ours, known in zip(curves, expected[2:], strict=True):  # so the same rows were learnt from
        assert ours["loss"] == pytest.approx(known["loss"], abs=1e-5)
    check_same(weights(job.output), truth)


@pytest.mark.parametrize("trials", ["sft"], indirect=True)
def test_a_run_that_goes_on_with_as_many_ends_with_the_same_bytes(trials: Trials) -> None:
    """With dropout, which depends on step and pass alone."""
    way: dict[str, Any] = {"checkpoint_every": 2, "processes": 2, "sharding": "shard", "epochs": 2,
                           "lora": {"r": 4, "dropout": 0.2, "merge": False}}  # fmt: skip
    truth, _, _ = trials.train("straight", **way)
    job = interrupted(trials, Store(str(trials.folder / "other")), 3, **way)
    job.emit = lambda event: None
    trials.stage(**way).run(job)
    ours = weights(job.output)
    assert ours.keys() == truth.keys() and all(torch.equal(ours[name], truth[name]) for name in truth)


@pytest.mark.slow
@pytest.mark.parametrize("trials", ["sft"], indirect=True)
def test_two_processes_survive_sigkill(trials: Trials, store: Store) -> None:
    way: dict[str, Any] = {"epochs": 2, "checkpoint_every": 2, "processes": 2}
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.sft.stage:Sft",
        "config": trials.stage(**way).model_dump(exclude_unset=True),
        "inputs": {"model": {"m": ["Model", str(trials.model)]}, "conversations": {"d": ["", trials.data.id]}},
    }
    killed.start(spec, trials.folder, kill_at=3)
    events: list[dict[str, Any]] = []
    resumed = carry_out(store, "sft", trials.stage(**way), trials.inputs(store), emit=events.append)
    assert next(event["step"] for event in events if event["event"] == "metric") == 3
    assert resumed.digest == trials.train("whole", **way)[2].digest


def test_no_stage_spreads_a_batch_over_gpus_by_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that sees four GPUs has one of them."""
    from trl.trainer.sft_config import SFTConfig

    from training.loops import trl

    monkeypatch.setattr(SFTConfig, "_setup_devices", torch.device("cuda", 0))
    monkeypatch.setattr(SFTConfig, "n_gpu", property(lambda self: self.__dict__.get("_n_gpu", 4)))
    monkeypatch.setattr(trl.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trl.torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(trl.torch.cuda, "set_device", lambda device: None)
    args = trl.arguments(Job(store, "gpus", "Model", {}, 0), SFTConfig, "float32", False, bf16=False)
    assert args.n_gpu == 1 and args.__dict__["_setup_devices"] == torch.device("cuda", 2)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("sft", {"processes": 0}, "greater than or equal to 1"),
        ("sft", {"processes": 5}, r"`processes` \(5\) are more than a step has conversations \(4\)"),
        ("kto", {"processes": 5}, r"more than a step has answers \(4\)"),
        ("reward", {"processes": 5}, r"more than a step has pairs \(4\)"),
        ("dpo", {"processes": 1, "sharding": "shard"}, "`sharding: shard` splits a model over several `processes`"),
        ("sft", {"sharding": "split"}, "'replicate' or 'shard'"),
        ("sft", {"processes": 2, "sharding": "shard", "lora": {"quantize": True}}, "`quantize` .* can't be split"),
        ("dpo", {"processes": 2, "loss": "aot"}, "`aot` puts different pairs together: .* or give a `micro_batch`"),
        ("dpo", {"processes": 3, "loss": "aot", "micro_batch": 2}, r"are more than a step has passes \(2\)"),
        ("dpo", {"processes": 2, "sft_weight": 0.1}, "`sigmoid` with `sft_weight` puts different pairs together"),
    ],
)
def test_what_cannot_be_shared_is_refused(kind: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        load(kind).model_validate({"batch": 4, **config})


@pytest.mark.parametrize("trials", ["sft"], indirect=True)
def test_a_model_is_not_split_over_one_process(trials: Trials) -> None:
    with pytest.raises(UserError, match="say how many `processes`"):
        trials.train("one", sharding="shard")


def test_processes_change_no_key() -> None:
    for kind in STAGES:
        plain, shared = load(kind).model_validate({}), load(kind).model_validate({"processes": 2, "sharding": "shard"})
        assert plain.identity() == shared.identity()


def test_each_process_has_a_part_of_a_packed_step() -> None:
    stage = load("sft").model_validate({"batch": 12, "micro_batch": 6})
    assert [packed_at_once(stage, processes) for processes in (1, 2, 3, 5, 12)] == [6, 6, 4, 2, 1]


def test_passes_are_dealt_out_once_and_as_many_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loops.distributed.world", lambda: 3)
    for count in range(1, 8):
        mine = list[list[tuple[int, float]]]()
        for number in range(3):
            monkeypatch.setattr("training.loops.distributed.rank", lambda number=number: number)
            mine.append(dealt(count))
        assert len({len(one) for one in mine}) == 1
        assert sorted(number for one in mine for number, counts in one if counts) == list(range(count))
    assert list(groups([5, 3, 9, 3, 40, 8], 1_000, processes=2)) == [[1, 3, 0], [5, 2, 4]]
