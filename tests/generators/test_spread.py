"""`judge` by rules and `select` end with the same bytes in one process and in others, in any order of their tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.execution.executors.processes import Processes
from engine.execution.worker import carry_out
from engine.stage.executor import Executor, Here
from engine.stage.job import Job
from engine.stage.stage import load
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.spreading import Killed, Shuffled

Make = Callable[..., Artifact]
OWN = """
def score(completions, **columns):
    return [None if "7" in text else float(len(text)) for text in completions]
"""


@pytest.fixture
def make(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(Job.slices, "__defaults__", (10, None, None))
    (tmp_path / "rewards.py").write_text(OWN)
    turn = [{"role": "user", "content": "What is it?"}]
    rows = [
        {
            "id": f"c{i}", "parents": [f"p{i // 3}"], "prompt_id": f"p{i // 3}", "prompt": turn, "sample": i % 3, "model": "m",
            "completion": [{"role": "assistant", "content": f"It is {i % 5}, or {i}."}], "reference": str(i) if i % 4 else None,
        }
        for i in range(60)
    ]  # fmt: skip
    candidates = given("Candidate", [*rows, rows[5]])  # one stands there twice
    values = [{"id": f"v{i}", "parents": [], "subject": f"c{i}", "metric": "m", "value": i * 7 % 11} for i in range(55)]
    given_to = {
        "judge": {"candidates": {"c": candidates}},
        "select": {"candidates": {"c": candidates}, "verdicts": {"v": given("Verdict", values)}},
    }
    rules = {"right": {"kind": "number"}, "long": "length(completion) > 12", "own": {"python": "rewards.py:score"}}
    configs: dict[str, dict[str, Any]] = {
        "judge": {"rules": {**rules, "seen": {"kind": "regex", "pattern": "[0-3],"}}, "verifiers": ["mathematics"]},
        "select": {"best": 1, "at_least": 2.0, "give": "conversations", "seed": 0},
    }

    def run(kind: str, executor: Executor, store: str = "", **more: Any) -> Artifact:
        config = load(kind).model_validate({**configs[kind], **more})
        place = Store(str(tmp_path / (store or f"store{len(list(tmp_path.iterdir()))}")))
        return carry_out(place, kind, config, given_to[kind], str(tmp_path), executor=executor)

    return run


@pytest.mark.parametrize("kind", ["judge", "select"])
def test_the_order_of_the_tasks_and_a_kill_change_no_byte(make: Make, kind: str) -> None:
    alone = make(kind, Here())
    assert len(alone.parts()) == 7
    assert make(kind, Shuffled()).digest == alone.digest
    with pytest.raises(KeyboardInterrupt):
        make(kind, Killed(3), "killed")
    assert make(kind, Here(), "killed").digest == alone.digest


def test_two_processes_make_the_bytes_of_one(make: Make) -> None:
    for kind in ("judge", "select"):
        made = make(kind, Processes(2))
        assert made.digest == make(kind, Here()).digest
        assert len(made.manifest["timings"]["workers"]) > 1


def test_programs_are_run_here_as_before(make: Make) -> None:
    made = make("judge", Processes(2), rules={"works": {"kind": "tests", "sandbox": "weaker"}}, verifiers=[])
    assert "workers" not in made.manifest["timings"]
