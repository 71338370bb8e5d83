"""Tasks in processes of this machine, which a fork server starts: each begins with what a stage imports, and with no thread.

A process ends with the fork server, which ends with the stage's worker. Its libraries get one thread each: there is a process a core.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

from engine.errors import StageFailed
from engine.execution.threads import COUNTS, cores
from engine.shortage import killed
from engine.stage.executor import Done, Here, Opened, Work

PDEATHSIG = 1  # of prctl
AHEAD = 2  # tasks that wait, for each process

_opened: Opened | BaseException | None = None


class Processes:
    """Of `width` processes at most; with one, one task, or less than `least` bytes to look at, all is done in this one."""

    def __init__(self, width: int | None = None, least: int = 0) -> None:
        self.width = width or cores()
        self.least = least

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        width = min(self.width, width or self.width)
        if width < 2 or (work.size is not None and work.size < self.least):
            yield from Here().map(work, tasks)
            return
        waiting = iter(tasks)
        first = [task for _, task in zip(range(2), waiting, strict=False)]
        if len(first) < 2:
            yield from Here().map(work, _joined(first, waiting))
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([work.make.__module__])
        with _one_thread_each():
            forkserver.ensure_running()
        pool = ProcessPoolExecutor(width, context, _begin, (work.dumps(), os.getpid()))
        under_way: deque[Future[Done]] = deque()
        try:
            for task in _joined(first, waiting):
                under_way.append(pool.submit(_do, task))
                if len(under_way) > AHEAD * width:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            # Which one it was, and how it ended, the pool does not say; the kernel kills where memory runs out.
            raise StageFailed(f"one of {width} processes {killed(signal.SIGKILL)}") from None
        finally:
            _end(pool, under_way)

    def close(self) -> None: ...


def _end(pool: ProcessPoolExecutor, under_way: Iterable[Future[Done]]) -> None:
    """Let what runs be finished, and kill the processes. Asked to end, as `shutdown` does, they could wait for ever: one that is killed as it
    waits for a task has the lock that the next one waits for.
    """
    processes: list[Any] = list((pool._processes or {}).values())  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportUnknownArgumentType, reportAttributeAccessIssue]
    running = [future for future in under_way if not future.cancel()]
    pool.shutdown(wait=False, cancel_futures=True)
    wait(running)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _joined(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest


@contextmanager
def _one_thread_each() -> Generator[None]:
    before = {name: os.environ.get(name) for name in COUNTS}
    os.environ.update(dict.fromkeys(COUNTS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _begin(data: bytes, parent: int) -> None:
    global _opened
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, int(signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _opened = Opened(Work.loads(data))
    except Exception as error:  # the pool would only know that a process ended
        _opened = error


def _do(task: Any) -> Done:
    if isinstance(_opened, BaseException):
        raise _opened
    assert _opened is not None
    return _opened.do(task)
