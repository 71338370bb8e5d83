"""A token engine that can be made to die: the fault that no real engine has on demand."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from generators.backends.protocol import Completion

FRAIL = "tests.generators.backends.frail:FrailEngine"
KILLS, BREAKS = 666, 667  # prompts that start with these kill the process, or raise


class FrailEngine:
    """Answers a prompt with its own ids, reversed; their log-probability is the seed plus the sum of the weights.

    Args:
        model: a folder; while it holds a file `fuse-N`, each batch burns one and dies.
        folder: another one for that, where the model is to stay as it is.
    """

    max_model_len = 100

    def __init__(self, model: str, slow: float = 0.0, folder: str | None = None, **_: Any) -> None:
        self.folder, self.slow = Path(folder or model), slow
        self.weights = 0.0

    def load_weights(self, named: Any) -> None:
        weights = {name: tensor.double() for name, tensor in named}
        if "b" not in weights:
            raise ValueError("b is missing")
        self.weights = float(sum((i + 1) * weight.sum() for i, weight in enumerate(weights.values())))

    def generate(self, prompts: list[list[int]], sampling: Any, seeds: list[int]) -> list[Completion]:
        for fuse in sorted(self.folder.glob("fuse-*"))[:1]:
            fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / "busy").touch()
        time.sleep(self.slow)
        if any(prompt[0] == KILLS for prompt in prompts):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(prompt[0] == BREAKS for prompt in prompts):
            raise IndexError("out of bounds")
        return [
            Completion(prompt[::-1], [seed + self.weights], "stop") for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def close(self) -> None: ...


def expected(prompts: list[list[int]]) -> list[Completion]:
    """What it answers to these prompts with the seeds 0, 1, ..."""
    return [Completion(prompt[::-1], [float(i)], "stop") for i, prompt in enumerate(prompts)]


def alive(pid: int) -> bool:
    """Whether there is a process of this id that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
