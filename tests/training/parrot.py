"""An engine without a model, for tests of what is learnt from answers and not of the answers."""

from __future__ import annotations

from typing import Any

import torch

from generators.backends.protocol import Completion


class Parrot:
    """Answers with ids drawn from the seeds."""

    length = 0  # of each answer; drawn if 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @classmethod
    def of(cls, length: int) -> type[Parrot]:
        """One whose answers have so many tokens."""
        return type("Parroting", (cls,), {"length": length})

    def generate(self, prompts: list[list[int]], sampling: Any, seeds: list[int]) -> list[Completion]:
        answers: list[Completion] = []
        for seed in seeds:
            draw = torch.Generator().manual_seed(seed % 2**31)
            count = self.length or int(torch.randint(2, 8, (), generator=draw))
            ids = [*torch.randint(5, 28, (count - 1,), generator=draw).tolist(), 1]
            answers.append(Completion(ids, [-3.0] * count, "stop"))
        return answers

    def load_weights(self, named: Any) -> None:
        for _ in named:
            pass

    def close(self) -> None:
        pass
