"""Engines are handed on between the stages of a run, one at a time, and none is left over."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flywheel
from engine.execution.residents import Residents, residents
from engine.execution.worker import carry_out
from engine.stage.executor import Effort
from engine.store.store import Store
from generators.backends.engines import load_engine
from generators.backends.local_model import Local
from generators.backends.process.host import Host
from generators.backends.process.lent_process import lender
from generators.backends.process.spawn import environment
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Sampling
from generators.candidates.stage import Candidates
from generators.text.prompts import load_tokenizer
from tests.generators.backends.frail import FRAIL, alive, expected

PROMPTS = [[10 + i, 50 + i] for i in range(5)]
SEEDS = list(range(5))


def lent(model: Path, told: Callable[[Effort], None] = lambda effort: None, **options: Any) -> WatchedEngine:
    return WatchedEngine(FRAIL, str(model), elsewhere=lender(model.name, "digest", None, told), **options)


class Kept(Local):
    def close(self) -> None: ...


def named(name: str, gives: str = "Candidate") -> Any:
    """As much of a stage as its run tells a resident process."""
    return SimpleNamespace(name=name, cached=False, gives=gives, inputs={}, step=SimpleNamespace(config=Candidates()))


def wait_for_end(pid: int) -> None:
    with os.fdopen(os.pidfd_open(pid)) as gone:
        assert select.select([gone], [], [], 300)[0]


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    return tmp_path / "one", tmp_path / "other"


def test_the_next_stage_gets_the_engine_and_the_last_one_leaves_none(models: tuple[Path, Path]) -> None:
    one, other = models
    told, pids = list[Effort](), list[int]()
    kept = Residents({"a": ["one"], "b": ["one"], "c": ["other"], "d": ["other"], "e": ["one"]})

    def ask(model: Path) -> int:
        with lent(model, told.append) as engine:
            assert engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS) and engine.pid
            pids.append(engine.pid)
        return pids[-1]

    with kept.listening():
        for name in ("a", "b"):
            with kept.during(named(name)):
                ask(one)
        assert pids[0] == pids[1] and alive(pids[0])
        with kept.during(named("c")):
            ask(other)
            assert not alive(pids[0])  # one model at a time
        with kept.during(named("e", gives="Model")):  # has no use for it, and it takes next to nothing
            assert alive(pids[2])
        with kept.during(named("d")):
            assert ask(other) == pids[2]
        assert not alive(pids[2])  # nobody will want it
        with kept.during(named("f")):  # as a stage does that the plan did not know of
            assert not alive(ask(one))
    assert [effort.worker.rpartition(":")[2] for effort in told] == list(map(str, pids))
    assert all(effort.cpu_s >= 0 and effort.peak_rss_mb > 1 for effort in told) and told[0].cpu_s > told[1].cpu_s


@pytest.mark.parametrize(("gpu", "free", "stays"), [(True, 2**60, False), (False, 2**60, True), (False, 0, False)])
def test_an_engine_that_waits_makes_room_for_a_stage_that_loads_weights(
    gpu: bool, free: int, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generators.backends.process.host._has_gpu", lambda: gpu)
    monkeypatch.setattr("generators.backends.process.host._free", lambda: free)
    wants = {"later": ["one"], "trains": []}
    held = Host(wants)
    engine, fresh = held.take("key", "one", environment(), 2)
    assert fresh
    held.hear("trains", wants)
    assert engine.process.poll() is None  # somebody has it
    held.give_back(engine)
    held.hear("later", wants)
    assert engine.process.poll() is None
    held.hear("trains", wants)
    assert (engine.process.poll() is None) == stays
    assert held.take("key", "one", environment(), 2)[1] != stays
    held.end()


def test_what_was_held_by_a_stage_that_died_is_not_lent_again(models: tuple[Path, Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.generators.backends.process.test_host import *\n"
        "engine = lent(Path(sys.argv[1]), slow=60); engine.max_model_len\n"
        "print(engine.pid, flush=True); engine.generate([[1]], Sampling(), [0])"
    )
    kept = Residents({"a": ["one"], "b": ["one"]})
    with kept.listening():
        stage = subprocess.Popen([sys.executable, "-c", script, str(models[0])], stdout=subprocess.PIPE, text=True)
        assert stage.stdout is not None
        held = int(stage.stdout.readline())
        stage.kill()
        stage.wait()
        wait_for_end(held)
        with lent(models[0]) as engine:
            assert engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS) and engine.deaths == 0
            waits = engine.pid
        assert waits is not None
        os.kill(waits, signal.SIGKILL)  # as the kernel does when memory runs out
        wait_for_end(waits)
        (models[0] / "fuse-0").touch()
        with lent(models[0]) as engine:
            assert engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS)
            assert engine.deaths == 1 and engine.pid != waits  # of the fuse
            host = int(Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(host, signal.SIGKILL)
            assert engine.generate(PROMPTS, Sampling(), SEEDS) == expected(PROMPTS)


def test_nothing_is_left_of_a_run_that_is_killed(models: tuple[Path, Path]) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.generators.backends.process.test_host import *\n"
        "with Residents({'a': ['one'], 'b': ['one']}).listening():\n"
        "    with lent(Path(sys.argv[1])) as engine: engine.max_model_len; pid = engine.pid\n"
        "    stat = Path(f'/proc/{pid}/stat').read_text()\n"
        "    print(pid, stat.rpartition(')')[2].split()[1], flush=True); sys.stdin.read()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(models[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    engine, host = map(int, run.stdout.readline().split())
    assert alive(engine) and alive(host)
    run.kill()
    run.wait()
    wait_for_end(host)
    wait_for_end(engine)


def test_stages_that_share_nothing_start_nothing() -> None:
    with residents([]):
        assert lender("m", "digest", None, lambda effort: None) is None


def test_two_stages_of_a_recipe_share_an_engine_and_no_byte_shows_it(
    make_model: Any, given: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "tiny")
    asked = [{"id": f"{i:032x}", "prompt": [{"role": "user", "content": f"Say {i}!"}]} for i in range(6)]
    prompts, artifact = given("Prompt", asked), model(folder)
    config: dict[str, Any] = {"n": 2, "max_tokens": 8, "partition": 4, "engine": "transformers"}
    settings = "n: 2, max_tokens: 8, partition: 4, engine: transformers"
    recipe = tmp_path / "shared.yaml"
    recipe.write_text(
        f"name: shared\nstages:\n"
        f"  a: {{kind: candidates, from: [store:{artifact.id}, store:{prompts.id}], {settings}, seed: 1}}\n"
        f"  b: {{kind: candidates, from: [store:{artifact.id}, store:{prompts.id}], {settings}, seed: 2}}\n"
    )
    made = flywheel.run(recipe, store=artifact.store.url)
    workers = [set(made[name].manifest["timings"]["workers"]) for name in "ab"]
    assert workers[0] == workers[1] and len(workers[0]) == 1
    loaded = Kept(load_engine("transformers", artifact.location, dtype="auto"), load_tokenizer(str(folder)))
    monkeypatch.setattr("generators.candidates.work.open_model", lambda *_, **__: loaded)
    inputs = {"model": {"m": artifact}, "prompts": {"p": prompts}}
    for name, seed in (("a", 1), ("b", 2)):
        truth = carry_out(Store(str(tmp_path / name)), "candidates", Candidates(seed=seed, **config), inputs)
        assert truth.digest == made[name].digest
