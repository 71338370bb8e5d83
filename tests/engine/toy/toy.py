"""Stage kinds for the spine's own tests, installed the way a third party's would be: by entry points on the path."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from engine.errors import StageFailed, Waiting
from engine.stage.stage import Footprint, NotIdentity, Stage, port
from engine.store.schema import row_id


class ToyRead(Stage):
    """Lines of a file as documents."""

    gives = "Document"
    path: str

    def sources(self, base: str) -> dict[str, str]:
        file = Path(base) / self.path
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}

    def run(self, job: Any) -> None:
        lines = (Path(job.base) / self.path).read_text().splitlines()
        rows = [
            {"id": row_id("Document", i, line), "parents": [], "text": line, "source": self.path, "offset": i}
            for i, line in enumerate(lines)
        ]
        job.commit("00000-lines", pa.Table.from_pylist(rows))


class Style(BaseModel):
    model_config = ConfigDict(extra="forbid")
    suffix: str = "!"


class ToyShout(Stage):
    """Upper case, a few rows at a time."""

    takes = {"documents": port("Document", many=True)}
    gives = "Document"
    style: Style = Field(default_factory=Style)
    times: int = Field(1, ge=1)
    pause: Annotated[float, NotIdentity] = 0.0
    workers: Annotated[int, NotIdentity] = 1
    ledger: Annotated[str | None, NotIdentity] = (
        None  # a file: for each part its name, this process and one that it started
    )

    def sieve(self) -> str | None:
        return "documents"

    def run(self, job: Any) -> None:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True).pid if self.ledger else 0
        for part in job.parts("documents", rows=4):
            time.sleep(self.pause)
            if self.ledger:
                with Path(self.ledger).open("a") as ledger:
                    ledger.write(f"{part.name} {os.getpid()} {child}\n")
            rows = [
                {**row, "id": row_id("Document", "shout", row["id"]), "parents": [row["id"]],
                 "text": row["text"].upper() + self.style.suffix * self.times}
                for row in part.table.to_pylist()
            ]  # fmt: skip
            part.commit(pa.Table.from_pylist(rows, part.table.schema))


class ToyTrain(Stage):
    """A 'model' that adds up random numbers, with a checkpoint every step."""

    takes = {"documents": port("Document"), "start": port("Model", optional=True)}
    gives = "Model"
    random = True
    steps: int = 5
    pause: Annotated[float, NotIdentity] = 0.0

    def run(self, job: Any) -> None:
        checkpoint = job.scratch / "checkpoint.json"
        state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "weight": 0}
        while state["step"] < self.steps:
            time.sleep(self.pause)
            state = {"step": state["step"] + 1, "weight": state["weight"] ^ job.derive("step", state["step"])}
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(json.dumps(state))
            partial.replace(checkpoint)
            job.metric(state["step"], loss=1.0 / state["step"])
            job.progress(state["step"], self.steps, "steps")
        (job.output / "weights.json").write_text(json.dumps(state))
        job.summary(steps=self.steps)


class ToyCrash(Stage):
    """Fails in the way it is told."""

    takes = {"documents": port("Document")}
    how: str

    def run(self, job: Any) -> None:
        if self.how == "exception":
            raise ZeroDivisionError("planted")
        if self.how == "empty":
            return
        if self.how == "memory":
            bytearray(1 << 60)
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(7)


class ToyEnvironment(Stage):
    """Its process's environment variables of these names, each as a document."""

    gives = "Document"
    environment = {"TOY_SETTING": "own", "KMP_BLOCKTIME": "own"}
    names: list[str]

    def run(self, job: Any) -> None:
        rows = [
            {
                "id": row_id("Document", name),
                "parents": [],
                "text": os.environ.get(name, ""),
                "source": name,
                "offset": 0,
            }
            for name in self.names
        ]
        job.commit("00000-environment", pa.Table.from_pylist(rows))


class ToyMeet(Stage):
    """Writes down when it begins and ends, waits for lines that others write, and takes of the machine what it is told to."""

    takes = {"documents": port("Document", many=True, optional=True)}
    gives = "Document"
    name: str
    ledger: Annotated[str, NotIdentity]
    until: Annotated[list[str], NotIdentity] = []
    how: Annotated[str, NotIdentity] = "ends"
    cores: Annotated[float, NotIdentity] = 0.1
    memory: Annotated[int, NotIdentity] = 0
    gpu: Annotated[bool, NotIdentity] = False

    def footprint(self, given: Any, device: Any) -> Footprint:
        return Footprint(self.cores, self.memory, self.gpu)

    def warm_up(self) -> tuple[str, ...]:
        return (*super().warm_up(), "toy:write_down_ahead", "toy:no_such_function")

    def run(self, job: Any) -> None:
        ledger = Path(self.ledger)

        def tell(what: str) -> None:
            with ledger.open("a") as file:
                file.write(f"{what} {self.name} {os.getpid()}\n")

        tell("begins")
        end = time.monotonic() + 60
        while not all(f"{line} " in ledger.read_text() for line in self.until):
            if time.monotonic() > end:
                raise StageFailed(f"{self.until} never happened")
            time.sleep(0.02)
        tell(self.how)
        if self.how == "fails":
            raise StageFailed("planted")
        if self.how == "waits":
            raise Waiting("people have to rank")
        text = {"text": self.name, "source": self.name, "offset": 0}
        job.commit("00000-met", pa.Table.from_pylist([{"id": row_id("Document", self.name), "parents": [], **text}]))


def write_down_ahead() -> None:
    """Says in the ledger that `$TOY_AHEAD` names which process did something ahead."""
    if file := os.environ.get("TOY_AHEAD"):
        with Path(file).open("a") as ledger:
            ledger.write(f"ahead {os.getpid()}\n")


class ToyMeasure(Stage):
    """Verdicts on a 'model': a tenth of its steps, some of each document's own, some of each seed's own. Beside it one that nobody trains,
    and a table with the share that each has of both."""

    takes = {"documents": port("Document"), "model": port("Model")}
    gives = "Verdict"

    def run(self, job: Any) -> None:
        state = json.loads((job.input("model").path / "weights.json").read_text())
        own = int(hashlib.sha256(str(state["weight"]).encode()).hexdigest()[:6], 16) / 0xFFFFFF - 0.5
        rows: list[dict[str, Any]] = []
        for row in job.input("documents").to_table(["id", "offset"]).to_pylist():
            plain = 1 + (row["offset"] % 5 - 2) / 5
            for model, value in (("toy", state["step"] / 10 + plain - 1 + 0.02 * own), ("plain", plain)):
                told = {"subject": row["id"], "model": model, "metric": "quality", "value": value, "text": None}
                rows.append(
                    {"id": row_id("Verdict", row["id"], model, state["weight"]), "parents": [row["id"]], **told}
                )
        job.commit("00000-verdicts", pa.Table.from_pylist(rows))
        trained = state["step"] / 10
        shares = {"toy": trained / (trained + 1), "plain": 1 / (trained + 1)}
        table = {model: {"share": v, "share_low": v - 0.01, "share_high": v + 0.01} for model, v in shares.items()}
        (job.output / "table.json").write_text(json.dumps(table))
