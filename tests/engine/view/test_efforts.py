"""Who did a stage's work, how fast, and who was slow; what a stage under way says of itself to those who ask elsewhere."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from engine.execution.progress import Bars
from engine.execution.progress_note import ProgressNote
from engine.stage.executor import Effort
from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.efforts import efforts, efforts_in_words, note_in_words
from engine.view.status import status_of, work_in_words
from tests.engine.running import slow_recipe, start
from tests.engine.view.test_shown_as_text import Planned


def effort(worker: str, wall_s: float) -> Effort:
    return Effort(worker, wall_s, wall_s / 2, 100)


def test_who_took_more_than_twice_the_median_is_told() -> None:
    seconds = {"n1:1": [1, 1, 1.0], "n1:2": [1, 2.0], "n2:9": [2.1, 7, 1]}
    job = Job(Store("."), "x-1", "Document", {}, 0)
    job.efforts = [effort(worker, wall) for worker, walls in seconds.items() for wall in walls]
    timings = {"wall_s": 10.0, "workers": job.told_efforts(), "tasks": job.told_tasks()}
    assert timings["tasks"] == {
        "done": 8, "median_s": 1.0, "stragglers": [{"task": 6, "worker": "n2:9", "wall_s": 7}, {"task": 5, "worker": "n2:9", "wall_s": 2.1}],
    }  # fmt: skip
    manifest = {"timings": timings, "rows": 5000, "files": {f"data/{i}.parquet": {} for i in range(8)}}
    told = efforts(Artifact(Store("."), "x-1", manifest))
    assert (told["workers"], told["nodes"], told["partitions"], told["rows_s"]) == (3, 2, 8, 500.0)
    assert efforts_in_words(told) == [
        "3 processes on 2 nodes, 8 partitions, 500 rows/s",
        "n2:9 took 10.1 s for 3 tasks (median of the workers 3.0 s)",
        "task 7 took 7.0 s on n2:9 (median 1.0 s)",
        "task 6 took 2.1 s on n2:9 (median 1.0 s)",
    ]
    assert efforts(Artifact(Store("."), "x-1", {**manifest, "timings": {"wall_s": 1.0}})) == {}


def test_a_stage_under_way_is_told_of_elsewhere_with_rate_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    scratch = store.scratch("toy-0123456789abcdef")
    (scratch / "spec.json").write_text(json.dumps({"run": "r", "stage": "loud"}))
    now = [100.0]
    monkeypatch.setattr("engine.execution.throughput.time.monotonic", lambda: now[0])
    with ProgressNote(scratch) as note:
        for second in range(5):
            note.hear({"event": "progress", "done": 1000 + 50 * second, "total": 2000, "unit": "rows"})
            note.hear({"event": "commit", "part": "p", "rows": 40, "rejected": 10})
            note.hear({"event": "workers", "workers": 4, "nodes": 2, "dashboard": "http://127.0.0.1:8265"})
            now[0] += 1
            assert second > 0 or not (scratch / "progress.json").exists()
    (row,) = status_of(store)
    assert (row["run"], row["stage"], row["state"], row["rows"]) == ("r", "loud", "under way", 160)
    assert work_in_words(row) == [
        "1,200 of 2,000 rows, 50.0/s, 16 s left, 4 partitions, 4 processes on 2 nodes, Ray: http://127.0.0.1:8265"
    ]
    noted = json.loads((scratch / "progress.json").read_text())
    (scratch / "progress.json").write_text(json.dumps({**noted, "at": time.time() - 60}))
    assert status_of(store)[0]["work"] == {}  # its run is gone
    (scratch / "progress.json").write_text("{" + "x" * 10)
    assert status_of(store)[0]["work"] == {} and note_in_words({}) == ""


def test_each_stage_under_way_has_a_bar_and_a_failure_is_told_at_once_beside_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bars = Bars()
    one, other = Planned("one"), Planned("other")
    bars.start([one, other])  # pyright: ignore
    for stage in (one, other):
        view: Any = stage
        bars.event(view, {"event": "workers", "workers": 2, "nodes": 1})
        bars.event(view, {"event": "commit", "part": "p", "rows": 1, "rejected": 0})
        bars.event(view, {"event": "progress", "done": 1, "total": 4, "unit": "rows"})
    assert [(task.description, task.completed, task.fields["work"]) for task in bars.bars.tasks] == [
        ("one", 1, "1 partition  2 processes"), ("other", 1, "1 partition  2 processes"),
    ]  # fmt: skip
    bars.event(one, {"event": "failed", "text": "planted"})  # pyright: ignore
    assert "failed; still under way: other" in capsys.readouterr().err
    bars.event(other, {"event": "done", "seconds": 1.0, "rows": 4})  # pyright: ignore
    bars.stop()
    assert bars.bars.tasks == [] and "1.0 s, 4 rows" in capsys.readouterr().err


def test_lines_of_json_carry_their_stage_and_a_process_that_was_killed_is_told(tmp_path: Path) -> None:
    recipe = slow_recipe(tmp_path, pause=0)
    with recipe.open("a") as file:
        file.write("  crash:\n    kind: toy_crash\n    from: lines\n    how: killed\n")
    done = start(tmp_path, "run", "slow.yaml", "--json")
    told = [json.loads(line) for line in done.communicate()[0].splitlines()]
    assert (
        done.returncode == 1
        and told[0]["event"] == "plan"
        and {event["stage"] for event in told[1:]} >= {"lines", "crash"}
    )
    (failed,) = [event for event in told if event["event"] == "failed"]
    assert failed["stage"] == "crash" and "was killed (SIGKILL)" in failed["text"]
    assert os.environ.get("FLYWHEEL_EVENTS") is None
