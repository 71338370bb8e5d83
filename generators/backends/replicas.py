"""Several engines of one model: each batch goes, whole, to the next that is free.

A batch is never split, so which engine answers, and how many there are, changes nothing about the answers.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Sequence

from engine.errors import UserError
from generators.backends.protocol import Completion, Failure, Sampling, TokenEngine


class Replicas:
    """A `TokenEngine` over others. `generate` may be called from as many threads as there are engines."""

    def __init__(self, engines: Sequence[TokenEngine]) -> None:
        self._engines = list(engines)
        self._free: queue.SimpleQueue[TokenEngine] = queue.SimpleQueue()
        for engine in self._engines:
            self._free.put(engine)

    @property
    def max_model_len(self) -> int:
        return self._engines[0].max_model_len

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Completion | Failure]:
        engine = self._free.get()
        try:
            return engine.generate(prompts, sampling, seeds)
        finally:
            self._free.put(engine)

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


def devices_of(replicas: int) -> list[str | None]:
    """The GPUs of each replica as CUDA_VISIBLE_DEVICES takes them; None where all may see all.

    Raises:
        UserError: there are GPUs, and they can't be shared out evenly.
    """
    if replicas == 1:
        return [None]
    seen = gpus()
    if not seen:
        return [None] * replicas
    if len(seen) % replicas:
        raise UserError(f"`replicas: {replicas}` can't share {len(seen)} GPUs evenly.")
    each = len(seen) // replicas
    return [",".join(seen[i * each : (i + 1) * each]) for i in range(replicas)]


def gpus() -> list[str]:
    """The GPUs that this process may see, each as CUDA_VISIBLE_DEVICES takes it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(_gpus())]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
