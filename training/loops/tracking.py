"""Curves elsewhere: TensorBoard, trackio or Weights & Biases get what a job reports (`report_to`).

`logs/metrics.parquet` of the artifact is written always and needs none of them. A run that is resumed goes on in the same
curve: it is known by its artifact's id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from training.loops.distributed import rank

if TYPE_CHECKING:
    from engine.stage.job import Job
    from training.loops.tracking_settings import Tracker

PROJECT = "flywheel"
Log = Callable[[dict[str, float], int], Any]


@contextmanager
def tracked(job: Job, name: Tracker) -> Generator[None]:
    """Within this, every `job.metric` also goes to this tracker (from rank 0 alone).

    Raises:
        UserError: it is not installed.
    """
    if name == "none" or rank():
        yield
        return
    log, close = _open(job, name)
    plain = job.emit

    def emit(event: dict[str, Any]) -> None:
        plain(event)
        if event["event"] == "metric":
            log({key: value for key, value in event.items() if key not in ("event", "step")}, event["step"])

    job.emit = emit
    try:
        yield
    finally:
        job.emit = plain
        close()


def _open(job: Job, name: Tracker) -> tuple[Log, Callable[[], Any]]:
    try:
        library: Any = import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise UserError(
            f"`report_to: {name}` needs {name}, which is not installed: pip install {name}. "
            "Without it, curves are in logs/metrics.parquet of the artifact and in `flywheel report`."
        ) from error
    if name == "tensorboard":
        writer = library.SummaryWriter(os.path.join("runs", job.artifact))  # noqa: PTH118

        def scalars(values: dict[str, float], step: int) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        return scalars, writer.close
    known = {"id": job.artifact} if name == "wandb" else {}  # trackio knows a run by its name alone
    run = library.init(project=PROJECT, name=job.artifact, resume="allow", **known)
    return lambda values, step: run.log(values, step=step), run.finish
