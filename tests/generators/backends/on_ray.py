"""Engines on a Ray cluster answer as one here would, whatever becomes of their nodes' processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.store.store import Store
from generators.backends.in_flight import in_flight
from generators.backends.local_model import Local
from generators.backends.open import open_model
from generators.backends.protocol import Failure, Sampling
from generators.backends.replica_bounds import Bounds
from generators.backends.replicas import Replicas
from generators.candidates.stage import Candidates
from tests.generators.backends.frail import FRAIL, KILLS, expected

ray = pytest.importorskip("ray")
SEEDS = list(range(6))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine takes its time
    ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def opened(store: Store, model: Any, tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """The engines of a stage that was told to run on Ray."""
    artifact = model(tiny)

    def make(**options: Any) -> Any:
        job = Job(store, "stage-0", "Candidate", {}, 0, options={"executor": "ray"})
        how: Any = {"engine": FRAIL, "options": {"folder": str(tmp_path), **options.pop("options", {})}}
        local = open_model(job, artifact, **how, **options)
        assert isinstance(local, Local) and isinstance(local.engine, Replicas)
        return local.engine

    return make


def batches(count: int) -> list[list[list[int]]]:
    return [[[10 + i, 50 + b] for i in range(6)] for b in range(count)]


@pytest.mark.usefixtures("cluster")
def test_a_batch_is_asked_again_where_an_actor_died(opened: Any, tmp_path: Path) -> None:
    engine = opened(replicas=2, options={"slow": 0.2})
    (tmp_path / "fuse-0").touch()
    asked = batches(12)
    asked[5][2][0] = KILLS
    ends = threading.Thread(target=kill_one, args=(engine,))
    ends.start()
    made = {
        tuple(batch[0]): made for batch, made in in_flight(asked, 4, lambda b: engine.generate(b, Sampling(), SEEDS))
    }
    ends.join()
    bad = made.pop(tuple(asked[5][0]))
    assert made == {tuple(batch[0]): expected(batch) for batch in asked if batch is not asked[5]}
    failed = bad[2]
    assert isinstance(failed, Failure) and failed.reason == "engine_died"
    assert [one for i, one in enumerate(bad) if i != 2] == [one for i, one in enumerate(expected(asked[5])) if i != 2]
    assert sum(one.deaths for one in engine._engines.values()) > 2
    engine.close()


def kill_one(engine: Replicas) -> None:
    while not (pids := [one.pid for one in list(engine._engines.values()) if one.pid]):  # pyright: ignore
        time.sleep(0.01)
    os.kill(pids[0], signal.SIGKILL)


@pytest.mark.usefixtures("cluster")
def test_there_are_as_many_actors_as_there_is_work_for_and_room(opened: Any) -> None:
    engine = opened(replicas=Bounds(min=1, max=8))
    (one,) = batches(1)
    assert engine.generate(one, Sampling(), SEEDS) == expected(one)
    assert len(engine._engines) == 1
    engine.close()
    many = opened(replicas=Bounds(min=1, max=8), options={"slow": 0.5})
    made = [made for _, made in in_flight(batches(16), 16, lambda b: many.generate(b, Sampling(), SEEDS))]
    assert len(made) == 16 and len(many._engines) == 8
    assert sum(one.pid is not None for one in many._engines.values()) == 3  # the others wait for room
    many.close()


@pytest.mark.usefixtures("cluster")
def test_a_stage_on_a_cluster_ends_with_the_bytes_of_one_here(
    given: Any, model: Any, tiny: Path, tmp_path: Path
) -> None:
    asked = [{"id": f"{i:032x}", "prompt": [{"role": "user", "content": f"Say {i}!"}]} for i in range(9)]
    inputs = {"model": {"m": model(tiny)}, "prompts": {"p": given("Prompt", asked)}}
    config: dict[str, Any] = {"n": 2, "max_tokens": 8, "partition": 2, "engine": "transformers"}
    here = carry_out(Store(str(tmp_path / "here")), "candidates", Candidates(seed=0, **config), inputs)
    there = carry_out(
        Store(str(tmp_path / "there")), "candidates", Candidates(seed=0, replicas=2, **config), inputs,
        options={"executor": "ray"},
    )  # fmt: skip
    assert here.digest == there.digest
    assert 1 <= len(there.manifest["timings"]["workers"]) <= 2
