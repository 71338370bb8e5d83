"""What a policy learnt from is kept, and told by its digest."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from engine.stage.job import Job
from engine.store.store import Store
from tests.training.tiny_chat import user
from training.rl.record import consumed, keep, warn_of_sameness
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


@pytest.mark.parametrize(
    ("cut", "scores", "missing_eos", "groups", "expected"),
    [
        # 15 of 16 are cut: the reward is constant, and what differs is whether an answer ended
        (15, [0.0] * 16, 1.0, 1, ["all 16 answers score 0. 15 were cut at `max_tokens`: raise it", "to end an answer, from `missing_eos` (1)"]),
        (16, [0.0] * 16, 1.0, 1, ["16 were cut at `max_tokens`: raise it", "constant reward teaches nothing"]),
        (15, [0.0] * 16, 0.0, 1, ["15 were cut at `max_tokens`: raise it", "constant reward teaches nothing"]),
        (0, [1.0] * 16, 1.0, 1, ["all 16 answers score 1. A constant reward teaches nothing"]),
        # one prompt is solved by all its answers, the other by none: compared among themselves they are alike
        (0, [1.0] * 8 + [0.0] * 8, 1.0, 2, ["the 8 answers to each of 2 prompts score alike. A constant reward"]),
        (8, [1.0] * 8 + [0.0] * 8, 1.0, 2, ["8 were cut", "A constant reward"]),  # those of one prompt, all of them
        (0, [1.0] * 8 + [0.0] * 8, 1.0, 1, []),
        (8, [1.0] * 15 + [0.0], 1.0, 1, []),
    ],
)  # fmt: skip
def test_why_an_iteration_teaches_nothing(
    store: Store, cut: int, scores: list[float], missing_eos: float, groups: int, expected: list[str]
) -> None:
    question = Question("q", user("what ?"), "blue", [2, 5, 1, 3])
    ends = ["stop"] * (16 - cut) + ["length"] * cut
    rollouts = [Rollout(question, [n], "red", end) for n, end in enumerate(ends)]
    events: list[dict[str, Any]] = []
    job = Job(store, "job", "Model", {}, 0, emit=events.append)
    warn_of_sameness(job, 0, rollouts, np.array(scores), missing_eos, groups)
    said = " ".join(event["text"] for event in events)
    assert bool(said) == bool(expected) and all(part in said for part in expected)
