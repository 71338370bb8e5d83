"""Who shares a stage's steps, and how they come together.

The process that runs the stage is rank 0. It starts the others on this machine; or torchrun has started them, here and on other nodes,
and they follow what it announces (`training.loops.torchrun`).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from engine.errors import FlywheelError, StageFailed, UserError
from engine.stage.job import Job
from training.loops.distributed import join, leave, wait_for_all
from training.loops.launch import Launch, launch
from training.loops.lead_files import meet
from training.loops.processes_settings import Strategy
from training.loops.roster import Attendance, Roster, cut_off


class SharedStage(Protocol):
    """What of a stage says how many processes share it."""

    processes: int | None
    sharding: Strategy


SomeStage = TypeVar("SomeStage", bound=SharedStage)


def share_work(
    stage: SomeStage, job: Job, work: Callable[[SomeStage, Job], None], rows: int, imports: Sequence[str]
) -> None:
    """Do a stage's work in as many processes as it says, or as there are.

    Args:
        work: what each process does: a function of a module.
        rows: of a step; so many processes at most.
        imports: as for `processes`.

    Raises:
        UserError: a model is to be split, and there is one process.
    """
    count = stage.processes or min(there(), rows)
    if count == 1 and stage.sharding == "shard":
        raise UserError(
            "`sharding: shard` splits a model over several processes, one for each GPU where `processes` is left out, and this "
            f"machine has {torch.cuda.device_count() or 'none'}: say how many `processes`, or leave `sharding` out."
        )
    with processes(count, job, partial(work, stage), imports) as ours:
        work(stage, ours)


def there() -> int:
    """How many processes share a stage that doesn't say: those that torchrun started, or one for each GPU."""
    launched = launch()
    return launched.world if launched else max(1, torch.cuda.device_count())


class Silent(Job):
    """A job as the processes other than rank 0 have it: what they would report, rank 0 reports."""

    def metric(self, step: int, **values: float) -> None: ...

    def summary(self, **values: Any) -> None: ...


def _silent(event: dict[str, Any]) -> None: ...


@contextmanager
def processes(
    count: int, job: Job, work: Callable[[Job], None], imports: Sequence[str] = ("transformers",)
) -> Generator[Job]:
    """Within this, the calling process is rank 0 of `count`; each other one does `work(job)`. Gives the job to work on.

    Args:
        work: what can be pickled: a module's function, with or without arguments (`functools.partial`).
        imports: modules that take long to import, that of `work` among them; done once for all the others of this machine.
    """
    launched = launch()
    if count <= 1:
        yield job
        return
    silent = Silent(**{field.name: getattr(job, field.name) for field in fields(job)})
    silent.emit = _silent
    with _leading(launched, count, job, silent, work) if launched else _started(count, silent, work, imports):
        yield job
        wait_for_all()


# -- on this machine -----------------------------------------------------------------------------------------------------


@contextmanager
def _started(count: int, silent: Job, work: Callable[[Job], None], imports: Sequence[str]) -> Generator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    # Forked from a process that has imported what is needed and done nothing else: one import for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", *imports])
    others: list[Any] = []
    for number in range(1, count):
        other = context.Process(target=_other, args=(number, count, place, work, silent), daemon=True)
        other.start()
        others.append(other)
    join(0, count, 0, place)
    try:
        yield
    except BaseException:
        for other in others:  # they wait for what will not come
            other.kill()
        raise
    finally:
        leave()
        for other in others:
            other.join(10)
            other.kill()


def _other(number: int, count: int, place: str, work: Callable[[Job], None], job: Job) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    join(number, count, number, place)
    work(job)
    wait_for_all()
    leave()


def _die_with_parent() -> None:
    """A killed rank 0 can't tell the others: each waits for its end."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


# -- as torchrun started them --------------------------------------------------------------------------------------------


@contextmanager
def _leading(launched: Launch, count: int, job: Job, silent: Job, work: Callable[[Job], None]) -> Generator[None]:
    """In rank 0.

    Raises:
        StageFailed: another process is gone.
    """
    roster = Roster(launched)
    number = roster.announce(count, pickle.dumps((work, silent)))
    attendance = Attendance(roster, number, count, job.emit)
    try:
        join(0, count, launched.gpu, roster.group(number))
        meet(job)
        yield
        leave()
    except BaseException as error:
        if cut_off(error):
            raise StageFailed(attendance.why()) from error
        roster.cancel(number)
        raise
    finally:
        attendance.close()


def follow(launched: Launch, number: int) -> None:
    """In another rank: its part of the stage with this number.

    Raises:
        FlywheelError: what went wrong here, which rank 0 hears of.
    """
    roster = Roster(launched)
    torch.set_num_threads(max(1, torch.get_num_threads() // launched.beside))
    try:
        work, job = pickle.loads(roster.order(number))
        join(launched.rank, int(roster.count(number) or 0), launched.gpu, roster.group(number))
        meet(job)
        work(job)
        wait_for_all()
        leave()
    except Exception as error:
        if not cut_off(error):  # by another's end, of which that one's node tells
            said = str(error) if isinstance(error, FlywheelError) else f"{type(error).__name__}: {error}"
            roster.lose(number, f"has failed: {said}")
        raise
