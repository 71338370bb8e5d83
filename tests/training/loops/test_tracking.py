"""Curves elsewhere: what a job reports, where a tracker was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.store import Store
from training.loops.tracking import tracked


@pytest.fixture
def job(store: Store, tmp_path: Path, monkeypatch: Any) -> Job:
    monkeypatch.chdir(tmp_path)
    return Job(store, "pretrain-abc", "Model", {}, 0)


def test_tensorboard_reads_the_curve_of_a_run_that_was_resumed(job: Job, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in ((1, 2), (3,)):
        with tracked(job, "tensorboard"):
            for step in steps:
                job.metric(step, loss=1 / step)
    job.metric(4, loss=0.0)  # no longer tracked
    events = accumulator.EventAccumulator(str(tmp_path / "runs" / "pretrain-abc"))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.3333)]


def test_without_one_nothing_is_written_anywhere_else(job: Job, tmp_path: Path) -> None:
    with tracked(job, "none"):
        job.metric(1, loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_tracker_that_is_not_installed_is_said(job: Job, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"), tracked(job, "wandb"):
        pass
