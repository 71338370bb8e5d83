"""On a cluster of two nodes, in the form in which Slurm starts one: the bytes of one process, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StageFailed, UserError
from engine.execution.executors.choice import LEAST_SET, open_executor
from engine.execution.executors.ray import SHUFFLE, RayExecutor, connect
from engine.execution.worker import carry_out
from engine.stage.executor import Here
from engine.store.lease import lease
from engine.store.store import Store
from tests.engine.conftest import ROOT, TOY
from tests.engine.running import COMMAND, alive, all_gone, start, until
from tests.engine.slurm import RayCluster, ray_cluster

pytestmark = pytest.mark.slow
DOCS = [{"id": f"{i:032x}", "parents": [], "text": f"text {i}" if i != 4 else "bad"} for i in range(60)]
SEEN_LOST = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    paths = os.pathsep.join([str(TOY), str(ROOT)])
    with pytest.MonkeyPatch.context() as patch, ray_cluster(2, PYTHONPATH=paths, **SEEN_LOST) as running:
        patch.setenv(LEAST_SET, "0")
        yield running


@pytest.fixture(scope="module")
def executor(cluster: RayCluster) -> Iterator[RayExecutor]:
    before = signal.getsignal(signal.SIGTERM)
    made = open_executor({"executor": "ray", "address": cluster.address})
    assert isinstance(made, RayExecutor)
    assert signal.getsignal(signal.SIGTERM) is before, "Ray would leave without closing what is open"
    until(lambda: made.width == 2, 300)
    yield made
    made.close()


class Runs:
    """The stage that spreads its slices, on the same documents, in one store."""

    def __init__(self, store: Store, documents: Any, marks: Path) -> None:
        from toy_spread import Loud  # pyright: ignore[reportMissingImports]

        self.store, self.documents, self.marks, self.kind = store, documents, marks, Loud
        self.said: list[str] = []
        marks.mkdir()
        alone = self(Here())
        self.id, self.digest = alone.id, alone.digest
        self.forget()

    def __call__(self, executor: Any, harm: str = "", pause: float = 0) -> Any:
        config = self.kind(harm=harm, marks=str(self.marks), pause=pause)
        inputs = {"documents": {"documents": self.documents}}
        return carry_out(self.store, "loud", config, inputs, emit=self.hear, executor=executor)

    def hear(self, event: dict[str, Any]) -> None:
        self.said.append(event.get("text", ""))

    def forget(self) -> None:
        for place in (self.store.path("artifacts", self.id), self.store.path("work", self.id), str(self.marks)):
            shutil.rmtree(place, ignore_errors=True)
        self.marks.mkdir()


@pytest.fixture
def runs(store: Store, given: Callable[..., Any], tmp_path: Path) -> Runs:
    return Runs(store, given("Document", DOCS), tmp_path / "marks")


def test_who_cannot_take_part_is_told_why(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    for address, words in {
        cluster.jobs: "ray job submit", "head": "expected `host:port`", "127.0.0.1:1": "there is no Ray cluster",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words):
            connect(address)
    other = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}  # in a process of its own: Ray keeps the first one that it read
    call = f"from engine.execution.executors.ray import connect; connect({cluster.address!r})"
    refused = subprocess.run([sys.executable, "-c", call], env=other, cwd=ROOT, capture_output=True, text=True)
    assert "without its token" in refused.stderr
    with monkeypatch.context() as patch:
        patch.setattr(ray, "__version__", "2.59.0")
        with pytest.raises(UserError, match=r"another version.*2\.60"):
            connect(cluster.address)
    ray.shutdown()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match="extra `ray`"):
            connect(cluster.address)


def test_two_nodes_make_the_bytes_of_one_process(executor: RayExecutor, runs: Runs) -> None:
    spread = runs(executor, pause=0.3)
    assert spread.digest == runs.digest and spread.manifest["summary"]["seen"] == len(DOCS)
    told = [line.split() for line in spread.log("processes").decode().splitlines()]
    assert len(told) == 2 and str(os.getpid()) not in [pid for pid, _, _ in told]
    assert {(seed, threads) for _, seed, threads in told} == {("0", "1")}
    efforts = spread.manifest["timings"]["workers"]
    assert (
        sum(one["tasks"] for one in efforts.values()) == 20 + 7
        and len({name.partition(":")[0] for name in efforts}) == 2
    )
    assert [text for text in runs.said if text.startswith("slice")] == [f"slice {i}" for i in range(20)] * 2


def test_a_drawn_order_of_tasks_changes_nothing(
    executor: RayExecutor, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHUFFLE, "5")
    assert runs(executor).digest == runs.digest
    began = sorted(runs.marks.glob("done-*"), key=lambda mark: mark.stat().st_mtime_ns)
    order = [int(mark.name.split("-")[1]) for mark in began]
    assert sorted(order) == list(range(20)) and sum(a > b for a, b in itertools.pairwise(order)) > 4


def test_what_a_lost_process_was_at_is_done_by_another(executor: RayExecutor, runs: Runs) -> None:
    assert runs(executor, "die once").digest == runs.digest
    assert any("a process on" in text and "goes to others" in text for text in runs.said)
    runs.forget()
    with pytest.raises(UserError, match="row 12 is not to be had"):
        runs(executor, "raise")
    runs.forget()
    with pytest.raises(StageFailed, match="3 processes of the Ray cluster were lost at the same task"):
        runs(executor, "die")
    again = runs(executor)
    assert again.digest == runs.digest and again.rows == len(DOCS) - 1


def test_a_run_that_is_killed_leaves_nothing_in_the_cluster(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(doc["text"] for doc in DOCS))
    (tmp_path / "marks").mkdir()
    stages = "{lines: {kind: toy_read, path: lines.txt}, loud: {kind: toy_spread, from: lines, pause: 0.5, marks: %s}}"
    (tmp_path / "r.yaml").write_text(f"name: r\nstages: {stages % (tmp_path / 'marks')}\n")
    there = ["--executor", "ray", "--address", cluster.address]

    def processes() -> set[int]:
        return {int(mark.name.split("-")[2]) for mark in (tmp_path / "marks").iterdir()}

    for number in (signal.SIGKILL, signal.SIGTERM):
        before = processes()
        running = start(tmp_path, "run", "r.yaml", *there)
        until(lambda before=before: len(processes() - before) == 2, 240)
        running.send_signal(number)
        assert running.wait(60) in (-9, 143)
        assert running.stdout and running.stdout.read() == ""
        until(lambda: all_gone(processes()), 60)
    until(lambda: not actors(cluster), 60)
    finished = start(tmp_path, "run", "r.yaml", "--set", "loud.pause=0", *there)
    words = finished.communicate(timeout=240)[1]
    assert finished.returncode == 0, words
    digest = Store(str(tmp_path / "store")).find("r/loud").digest
    shutil.rmtree(tmp_path / "store")
    alone = start(tmp_path, "run", "r.yaml", "--set", "loud.pause=0")
    assert alone.communicate(timeout=240) and Store(str(tmp_path / "store")).find("r/loud").digest == digest


def actors(cluster: RayCluster) -> list[Any]:
    from ray.util.state import list_actors

    return [
        one for one in list_actors(cluster.jobs, filters=[("state", "!=", "DEAD")]) if one.class_name == "TaskWorker"
    ]


RECIPE = """\
name: submitted
store: {store}
stages:
  documents:
    kind: read
    paths: ["texts.jsonl"]
  kept:
    kind: filter
    from: documents
    min_words: 3
"""


def test_a_submitted_run_finds_its_files_and_makes_the_same(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    texts = "\n".join('{{"text": "{}"}}'.format(" ".join(["word"] * (i % 7) + [str(i)])) for i in range(25_000))
    (tmp_path / "sent" / "texts.jsonl").write_text(texts)
    (tmp_path / "sent" / "r.yaml").write_text(RECIPE.format(store=tmp_path / "store"))
    subprocess.run([*COMMAND, "run", "r.yaml", "--store", tmp_path / "alone"], cwd=tmp_path / "sent", check=True)
    submitted = subprocess.run(
        [ROOT / ".venv/bin/ray", "job", "submit", "--address", cluster.jobs, "--working-dir", ".", "--",
         "env", f"{LEAST_SET}=0", "flywheel", "run", "r.yaml", "--executor", "ray"],
        cwd=tmp_path / "sent", capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    one, two = (Store(str(tmp_path / name)).find("submitted/kept") for name in ("alone", "store"))
    assert one.digest == two.digest and len(two.manifest["timings"]["workers"]) >= 1


def test_who_comes_back_after_a_run_is_over_changes_nothing(executor: RayExecutor, runs: Runs) -> None:
    """The last test: it costs the cluster a node."""
    import ray

    (runs.marks / "head").write_text(str(_raylet_of_head()))
    with lease(runs.store, runs.id):
        done = runs(executor, "stop", pause=0.1)
    assert done.digest == runs.digest
    assert any("its node is gone" in text for text in runs.said)
    zombie, raylet = map(int, (runs.marks / "stopped").read_text().split())
    assert alive({zombie}) and not (runs.marks / "back").exists()
    before = _everything(runs.store)
    os.kill(zombie, signal.SIGCONT)
    until(lambda: (runs.marks / "back").exists() or not alive({zombie}))
    with contextlib.suppress(ProcessLookupError):
        os.kill(raylet, signal.SIGCONT)  # it learns that it is thought dead, and ends
    until(lambda: all_gone({zombie, raylet}), 120)
    assert (runs.marks / "back").exists(), "it was to go on where it stood still"
    assert _everything(runs.store) == before
    assert sum(node["Alive"] for node in ray.nodes()) == 1


def _raylet_of_head() -> int:
    """The process that looks after the head's workers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next(node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    strategy = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    return ray.get(ray.remote(num_cpus=0)(lambda: os.getppid()).options(scheduling_strategy=strategy).remote())


def _everything(store: Store) -> dict[str, Any]:
    root = Path(store.root)
    return {str(f.relative_to(root)): (f.stat().st_ino, f.stat().st_mtime_ns) for f in root.rglob("*") if f.is_file()}
