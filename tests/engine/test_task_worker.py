"""What a node's process does with what it is sent, without a cluster; and the files that start one are recipes and commands that exist."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from engine.cli import app
from engine.errors import UserError
from engine.execution.executors.task_worker import TaskWorker
from engine.plan.recipe import load_recipe
from engine.stage.executor import Work
from engine.stage.job import Job
from engine.store import known_digests
from engine.store.lease import Superseded, lease
from engine.store.store import Store
from tests.engine.conftest import ROOT
from tests.engine.running import until

EXAMPLES = ROOT / "examples" / "cluster"


def _work(store: Store) -> Work:
    from toy_spread import Squares  # pyright: ignore[reportMissingImports]

    return Work(Squares, Job(store, "loud-0123456789abcdef", "Document", {}, 0))


def test_a_node_that_does_not_see_the_store_is_told_of(store: Store) -> None:
    answer = pickle.loads(TaskWorker(None).open(_work(store).dumps(), b"token"))
    with pytest.raises(UserError, match=r"can't see the store .* all nodes have under the same path"):
        raise answer.again()
    store.put(b"token", "work", "loud-0123456789abcdef", "reach")
    worker = TaskWorker(None)
    assert pickle.loads(worker.open(_work(store).dumps(), b"token")) is None
    assert pickle.loads(worker.do(pickle.dumps(7))).result == 49


def test_who_lost_the_lease_leaves_nothing_for_others(store: Store) -> None:
    work = _work(store)
    with lease(store, work.job.artifact) as held:
        store.lease = held
        exchange = cast(Job, Work.loads(work.dumps()).job).exchange
        exchange.put("phase/0", b"mine")
    for put in (
        lambda: exchange.put("phase/1", b"late"),
        lambda: exchange.put("phase/0", b"late", kept=False),
    ):
        with pytest.raises(Superseded):
            put()
    assert exchange.names("phase") == ["phase/0"] and exchange.get("phase/0") == b"mine"


def test_a_process_that_others_started_shares_what_the_run_knows(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"bytes")
    os.utime(file, (1, 1))
    time_was = file.stat().st_ctime_ns
    until(lambda: time.time_ns() - time_was > 10 * known_digests.TICK_NS)
    with known_digests.shared_digests():
        told = known_digests.told()
        assert told
        known = Path(told.place)
        os.environ[known_digests.SHARED] = "/proc/1/fd/9"  # of another run, elsewhere
        known_digests.take_part(told)
        assert os.environ[known_digests.SHARED].startswith(f"/proc/{os.getpid()}/fd/")
        digest = known_digests.digest_of(file)
        assert digest in known.read_text()
        known_digests.take_part(known_digests.Told("another machine", told.place))
        assert known_digests.SHARED not in os.environ


def test_the_files_that_start_a_cluster_name_what_is_there() -> None:
    recipe = load_recipe(EXAMPLES / "curate_on_ray.yaml")
    assert recipe.executor == "ray" and list(recipe.steps) == ["texts", "clean", "unique", "shards"]
    assert list(load_recipe(EXAMPLES / "train.yaml").steps) == ["sft", "dpo"]
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    sky: dict[str, Any] = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    shared: dict[str, Any] = yaml.safe_load((EXAMPLES / "skypilot_train.yaml").read_text())
    torchrun, _, training = shared["run"].replace("\\\n", "").partition("-m flywheel")
    started = {word.partition("=")[0] for word in torchrun.split() if word.startswith("--")}
    assert started == {"--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port"}
    lines = [*sky["run"].splitlines(), f"flywheel {training}"]
    commands = [job["spec"]["entrypoint"], *[line for line in lines if "flywheel run" in " ".join(line.split())]]
    (command,) = [one for one in app.registered_commands if one.callback and one.callback.__name__ == "run"]
    known = {"--" + name.replace("_", "-").rstrip("-") for name in cast(Any, command.callback).__annotations__}
    for words in [one.split() for one in commands]:
        assert Path(words[words.index("run") + 1]).name in ("curate_on_ray.yaml", "train.yaml")
        assert {word for word in words if word.startswith("--")} <= known
