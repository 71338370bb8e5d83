"""A token engine that can be made to die: the fault that no real engine has on demand."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from generators.backend import Completion

KILLS, BREAKS = 666, 667  # prompts that start with these kill the process, or raise


class FrailEngine:
    """Answers a prompt with its own ids, reversed.

    Args:
        model: a folder; while it holds a file `fuse-N`, each batch burns one and dies.
    """

    max_model_len = 100

    def __init__(self, model: str, slow: float = 0.0) -> None:
        self.folder, self.slow = Path(model), slow

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
        return [Completion(prompt[::-1], [float(seed)], "stop") for prompt, seed in zip(prompts, seeds, strict=True)]

    def close(self) -> None: ...
