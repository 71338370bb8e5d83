"""What a policy learnt from is kept, and told by its digest."""

from __future__ import annotations

import shutil

import numpy as np

from engine.stage.job import Job
from engine.store.store import Store
from tests.training.tiny_chat import user
from training.rl.record import consumed, keep
from training.rl.rollouts import Question, Rollout


def test_what_was_learnt_from_is_kept_in_order_and_told_by_its_digest(store: Store) -> None:
    question = Question("q", user("what ?"), "blue", [2, 5, 1, 3])
    a, b = Rollout(question, [7], "red", "stop"), Rollout(question, [8], "blue", "length")

    def told(*iterations: list[Rollout]) -> str:
        job = Job(store, f"job{len(list(store.walk('scratch')))}-{iterations!r:.40}".replace("/", ""), "Model", {}, 0)
        shutil.rmtree(job.scratch, ignore_errors=True)
        for number, rollouts in enumerate(iterations):
            keep(job, number, rollouts, np.array([1.0] * len(rollouts)))
            keep(job, number, rollouts, np.array([1.0] * len(rollouts)))  # a repeated iteration replaces itself
        return consumed(job)[0]

    assert told([a, b]) != told([b, a]) and told([a, b]) == told([a], [b]) != told([a])
