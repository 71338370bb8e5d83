"""What a model on this machine has spent is told after every batch, and goes on from what a killed run had counted."""

from __future__ import annotations

from typing import Any

from generators.backends.local_model import Local
from generators.backends.protocol import Completion, Failure, Sampling, Usage
from tests.training.tiny import tokenizer


class Engine:
    max_model_len = 100

    def generate(self, prompts: Any, sampling: Any, seeds: Any) -> list[Completion | Failure]:
        made = [Completion([1, 2], None, "stop") for _ in prompts]
        return [*made[:-1], Failure("engine_died", "it did")]

    def close(self) -> None: ...


def test_usage() -> None:
    told = list[Usage]()
    local = Local(Engine(), tokenizer(), usage=told.append, before=Usage(100, 10))
    local.sample([[5, 6, 7], [5]], Sampling(), [0, 1])
    local.sample([[5]], Sampling(), [0])
    assert told == [Usage(104, 12), Usage(105, 12)] and local.usage == told[-1]
