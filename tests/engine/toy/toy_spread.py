"""A stage that spreads its slices, and does harm where it is told."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.slices import Slice
from engine.stage.stage import NotIdentity, Stage, port


class Shouter:
    """Upper case, three rows at a time. One task is known by the text of its first row: `text 12`."""

    def __init__(self, job: Job, harm: str, marks: str, pause: float) -> None:
        self.job, self.harm, self.marks, self.pause = job, harm, Path(marks), pause

    def __call__(self, piece: Slice) -> str:
        if part := self.job.part(piece):
            rows = part.table.to_pylist()
            time.sleep(self.pause)
            if rows[0]["text"] == "text 12":
                self._harm()
            self.job.say(f"slice {piece.index}")
            kept = [{**row, "text": row["text"].upper()} for row in rows if row["text"] != "bad"]
            bad = [{**row, "reason": "bad", "failed": True} for row in rows if row["text"] == "bad"]
            self.job.exchange.put(f"counts/{piece.index:03d}", str(len(rows)).encode())
            if (
                self.harm == "stop"
                and str(os.getppid()) != (self.marks / "head").read_text()
                and self._first("stopped")
            ):
                os.kill(os.getppid(), signal.SIGSTOP)  # what looks after this process: the node seems lost
                os.kill(os.getpid(), signal.SIGSTOP)
                (self.marks / "back").touch()
            part.commit(pa.Table.from_pylist(kept, part.table.schema), pa.Table.from_pylist(bad) if bad else None)
            if self.marks.is_dir():
                (self.marks / f"done-{piece.index}-{os.getpid()}").touch()
        return f"{os.getpid()} {piece.start} {os.environ.get('PYTHONHASHSEED')} {os.environ.get('OMP_NUM_THREADS')}"

    def _harm(self) -> None:
        match self.harm:
            case "raise":
                raise UserError("row 12 is not to be had")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die once" if self._first("died"):
                os.kill(os.getpid(), signal.SIGKILL)
            case _:
                pass

    def _first(self, name: str) -> bool:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(self.marks / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(descriptor, f"{os.getpid()} {os.getppid()}".encode())
            os.close(descriptor)
            return True
        return False


class Loud(Stage):
    takes = {"documents": port("Document")}
    gives = "Document"
    harm: Annotated[str, NotIdentity] = ""
    marks: Annotated[str, NotIdentity] = ""
    pause: Annotated[float, NotIdentity] = 0.0

    def run(self, job: Job) -> None:
        pieces = job.slices("documents", rows=3)
        told: list[list[str]] = []
        for text in job.spread(Shouter, pieces, self.harm, self.marks, self.pause):
            told.append(text.split())
            job.progress(len(told), len(pieces), "slices")
        assert [int(one[1]) for one in told] == [piece.start for piece in pieces], (
            "results come in the order of the tasks"
        )
        again = list(job.spread(Squares, range(7)))  # a phase after it, by the same processes
        job.write_log("processes", "\n".join(sorted({f"{one[0]} {one[2]} {one[3]}" for one in told})).encode())
        counts = [int(job.exchange.get(name)) for name in job.exchange.names("counts")]
        job.summary(seen=sum(counts), slices=len(counts), again=again)


class Squares:
    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, number: int) -> Any:
        return number * number
