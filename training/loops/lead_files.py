"""Files of rank 0's scratch folder, in all processes: those on nodes that don't see it get a copy.

In a store that is a folder, scratch is in it, and a node that doesn't see it can't take part. Of a store elsewhere (S3) each machine has a
scratch folder of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from engine.errors import UserError
from engine.stage.job import Job
from training.loops.distributed import everywhere, from_lead, rank, wait_for_all, world

BLOCK = 64 << 20  # bytes of a message
_copied = False  # whether any process doesn't see rank 0's files
_writes = False  # whether this one makes the copies for its node


def meet(job: Job) -> None:
    """See which processes have rank 0's scratch folder before them. All must ask, before they read from it.

    Raises:
        UserError: the store is a folder, and not on all nodes the same one.
    """
    global _copied, _writes

    def leave_mark() -> str:
        mark = f"ranks-{uuid.uuid4().hex}"
        (job.scratch / mark).touch()
        return mark

    mark = from_lead(leave_mark)
    sees = (job.store.workplace() / job.artifact / mark).exists()
    known = everywhere((socket.gethostname(), sees))
    if rank() == 0:
        (job.scratch / mark).unlink()
    blind = [number for number, (_, seeing) in enumerate(known) if not seeing]
    if blind and job.store.local:
        hosts = ", ".join(dict.fromkeys(known[number][0] for number in blind))
        raise UserError(
            f"the store {job.store.url} of the run, which process 0 on {known[0][0]} leads, is not what {hosts} has there: give one that "
            "all nodes see, a folder on a shared disk or a bucket (`--store s3://...`)."
        )
    _copied = bool(blind)
    _writes = not sees and rank() == min(number for number in blind if known[number][0] == known[rank()][0])
    if _writes:
        shutil.rmtree(job.scratch)  # of another time
    wait_for_all()


def from_lead_file(find: Callable[[], Path | None], home: Path) -> Path | None:
    """A file or folder below `home`: in rank 0 what `find` gives, in the others the same path below a `home` of their own. All must ask."""
    if world() == 1:
        return find()

    def name() -> Path | None:
        found = find()
        return found and found.relative_to(home)

    place = from_lead(name)
    if place is not None and _copied:
        _copy(home / place)
    return place and home / place


def _copy(place: Path) -> None:
    """All must; who doesn't see what is there writes it."""
    inside = from_lead(lambda: [f.relative_to(place) for f in sorted(place.rglob("*")) if f.is_file()] or [Path()])
    for name in inside:
        with contextlib.ExitStack() as opened:
            file: BinaryIO | None = None
            if rank() == 0 or _writes:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context((place / name).open("wb" if _writes else "rb"))
            while block := from_lead(lambda file=file: file.read(BLOCK) if file else b""):
                if file and _writes:
                    file.write(block)
    wait_for_all()
