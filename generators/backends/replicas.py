"""Several engines of one model: each batch goes, whole, to the next that is free.

A batch is never split, so which engine answers, and how many there are, changes nothing about the answers. Engines are loaded when
batches wait, while those that are loaded answer, and the ones above the least number go when they had nothing to do for a while.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from engine.errors import UserError
from generators.backends.process.engine_process import NoRoom
from generators.backends.protocol import Completion, Failure, Sampling, TokenEngine

IDLE_S = 60.0


class Replicas:
    """A `TokenEngine` over others. `generate` is called from more threads than there are engines, so that none waits for work.

    Args:
        make: gives an engine by its number, from 0; it loads when its `max_model_len` is first asked for.
        least: engines there are from the first batch on. most: engines there may be.
    """

    def __init__(self, make: Callable[[int], TokenEngine], least: int, most: int) -> None:
        self._make, self._least, self._most = make, least, most
        self._changed = threading.Condition()
        self._engines: dict[int, TokenEngine] = {}
        self._free: list[tuple[int, float]] = []  # number, and since when; the last one is the first to be asked
        self._waiting = self._loading = self._longest = 0
        self._problem: Exception | None = None
        self._closed = False

    @property
    def max_model_len(self) -> int:
        if not self._longest:
            number = self._take()
            self._longest = self._engines[number].max_model_len
            self._put(number)
        return self._longest

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Completion | Failure]:
        while True:
            number = self._take()
            try:
                made = self._engines[number].generate(prompts, sampling, seeds)
            except NoRoom:  # it died, and has to wait for a place: another answers
                with self._changed:
                    self._begin(number)
                continue
            except BaseException:
                self._put(number)
                raise
            self._put(number)
            return made

    def close(self) -> None:
        with self._changed:
            self._closed = True
            free, self._free = self._free, []
            self._changed.notify_all()
        for number, _ in free:
            self._engines[number].close()

    def _take(self) -> int:
        with self._changed:
            self._waiting += 1
            try:
                while not self._free:
                    if self._problem:
                        raise self._problem
                    self._grow()
                    self._changed.wait()
                return self._free.pop()[0]
            finally:
                self._waiting -= 1

    def _grow(self) -> None:
        while len(self._engines) < self._least or (len(self._engines) < self._most and self._loading < self._waiting):
            number = next(n for n in range(self._most) if n not in self._engines)
            self._engines[number] = self._make(number)
            self._begin(number)

    def _begin(self, number: int) -> None:
        self._loading += 1
        threading.Thread(target=self._load, args=(number,), name=f"replica {number}", daemon=True).start()

    def _load(self, number: int) -> None:
        engine, problem = self._engines[number], None
        while not self._closed:
            try:
                _ = engine.max_model_len
                break
            except NoRoom:
                continue
            except Exception as error:
                problem = error
                break
        with self._changed:
            self._loading -= 1
            self._problem = self._problem or problem
            if not self._closed and not problem:
                self._free.append((number, time.monotonic()))
            self._changed.notify_all()
        if self._closed:
            engine.close()

    def _put(self, number: int) -> None:
        with self._changed:
            now = time.monotonic()
            self._free.append((number, now))
            idle = self._free[0][0] if now - self._free[0][1] > IDLE_S and len(self._engines) > self._least else None
            useless = self._engines.pop(self._free.pop(0)[0]) if idle is not None else None
            self._changed.notify()
        if useless:
            useless.close()


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
