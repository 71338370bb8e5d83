"""Where a stage's tasks run: in this process, in processes of this machine, or on the nodes of a cluster. A stage does not know.

A stage names what makes its worker, and the tasks (see `Job.spread`). The executor has the worker made once in every process that
takes part, calls it with one task after the other, wherever there is room, and gives back what it returned in the order of the tasks.
So results depend neither on how many processes there are nor on which of them is faster, as long as a worker does not either.
"""

from __future__ import annotations

import os
import pickle
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from engine.store.files import StoreFiles

Event = dict[str, Any]


class Speaker(Protocol):
    """What a worker works for (`engine.stage.job.Job`), as far as an executor goes."""

    emit: Callable[[Event], None]

    @property
    def artifact(self) -> str: ...
    @property
    def store(self) -> StoreFiles: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Work:
    """What every process of a phase is told once: `make(job, *common)` gives the worker, which is called with each task.

    Attributes:
        size: bytes on disk that its tasks look at, all together; of few, to start processes takes longer. None: not known.
    """

    make: Callable[..., Callable[[Any], Any]]
    job: Speaker
    common: tuple[Any, ...] = ()
    size: int | None = None

    def dumps(self) -> bytes:
        return pickle.dumps(self, pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(data: bytes) -> Work:
        return cast(Work, pickle.loads(data))


@dataclass(frozen=True)
class Effort:
    """What a task took, and where.

    Attributes:
        worker: `node:process`.
        cpu_s: of the process, threads and all.
        peak_rss_mb: of the process so far.
    """

    worker: str
    wall_s: float
    cpu_s: float
    peak_rss_mb: float


@dataclass(frozen=True)
class Done:
    """What a task gave, what its worker said meanwhile (`Job.emit`), and what it took; `effort` is None where it was done here."""

    result: Any
    events: list[Event] = field(default_factory=lambda: [])
    effort: Effort | None = None


class Executor(Protocol):
    """
    Attributes:
        width: how many tasks are done at once.
    """

    @property
    def width(self) -> int: ...

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        """Have every task done; in the order of the tasks. Of these, few are drawn before they are needed.

        Args:
            width: at most so many at once.

        Raises:
            what a worker raised; StageFailed: where it ran was lost, and so were those that took over.
        """
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


class Here:
    """In this process, one task after the other."""

    width = 1

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        worker = work.make(work.job, *work.common)
        for task in tasks:
            yield Done(worker(task))

    def close(self) -> None: ...


class Opened:
    """The other side: a process that takes part, with its worker."""

    def __init__(self, work: Work, place: str | None = None) -> None:
        """
        Args:
            work: as it came here.
            place: `node:process`, as people know the node; by its host's name if None.
        """
        self._events: list[Event] = []
        work.job.emit = self._hear
        self._worker = work.make(work.job, *work.common)
        self._name = place or f"{socket.gethostname()}:{os.getpid()}"

    def _hear(self, event: Event) -> None:
        if event["event"] != "progress":  # of this process alone; whoever gave the tasks counts them
            self._events.append(event)

    def do(self, task: Any) -> Done:
        wall, cpu = time.monotonic(), time.process_time()
        result = self._worker(task)
        effort = Effort(self._name, time.monotonic() - wall, time.process_time() - cpu, peak_rss_mb())
        events, self._events = self._events, []
        return Done(result, events, effort)


def peak_rss_mb() -> float:
    """The most memory that this process had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform == "linux" else 1024 * 1024)
