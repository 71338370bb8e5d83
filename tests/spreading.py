"""Executors that do a stage's tasks in another order than theirs, or not all of them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Iterator
from typing import Any

from engine.stage.executor import Done, Opened, Work


class Shuffled:
    """As other processes would, with nothing but what can be pickled, and in an order of its own."""

    width = 3

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        opened, data = Opened(Work.loads(work.dumps())), [pickle.dumps(task) for task in tasks]
        order = list(range(len(data)))
        self.random.shuffle(order)
        done = {i: pickle.dumps(opened.do(pickle.loads(data[i]))) for i in order}
        yield from (pickle.loads(done[i]) for i in range(len(data)))


class Killed(Shuffled):
    """Ends after so many tasks, whichever they are."""

    def __init__(self, after: int, seed: int = 0) -> None:
        super().__init__(seed)
        self.left = after

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        opened, given = Opened(Work.loads(work.dumps())), list(tasks)
        for task in self.random.sample(given, len(given)):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            opened.do(task)
        yield from Shuffled().map(work, given)
