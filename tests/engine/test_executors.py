"""However a stage's tasks are spread, its rows are the same; what a process says, raises or dies of is heard."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import process as process_pool
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import StageFailed, UserError
from engine.execution.executors.processes import Processes
from engine.execution.worker import carry_out
from engine.stage.executor import Here
from engine.stage.job import Job
from engine.stage.slices import Slice
from engine.stage.stage import Stage, port

DOCS = [{"id": f"{i:032x}", "parents": [], "text": f"text {i}" if i != 4 else "bad"} for i in range(25)]


class Shouter:
    def __init__(self, job: Job, harm: str) -> None:
        self.job, self.harm = job, harm

    def __call__(self, piece: Slice) -> str:
        if part := self.job.part(piece):
            rows = part.table.to_pylist()
            if self.harm == "raise" and rows[0]["text"] == "text 3":
                raise UserError("row 3 is not to be had")
            if self.harm == "die" and rows[0]["text"] == "text 3":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01 * (piece.index % 3))  # a later slice may be done first
            self.job.say(f"slice {piece.index}")
            kept = [{**row, "text": row["text"].upper()} for row in rows if row["text"] != "bad"]
            bad = [{**row, "reason": "bad", "failed": True} for row in rows if row["text"] == "bad"]
            self.job.exchange.put(f"counts/{piece.index:03d}", str(len(rows)).encode())
            part.commit(pa.Table.from_pylist(kept, part.table.schema), pa.Table.from_pylist(bad) if bad else None)
        return f"{os.getpid()} {piece.start}"


class Loud(Stage):
    takes = {"documents": port("Document")}
    gives = "Document"
    harm: str = ""

    def run(self, job: Job) -> None:
        told = [text.split() for text in job.spread(Shouter, job.slices("documents", rows=3), self.harm)]
        assert [int(start) for _, start in told] == list(range(0, 25, 3)), "results come in the order of the tasks"
        job.write_log("processes", " ".join(sorted({process for process, _ in told})).encode())
        counts = [int(job.exchange.get(name)) for name in job.exchange.names("counts")]
        job.summary(seen=sum(counts), slices=len(counts))


@pytest.fixture
def loud(given: Any, store: Any) -> Any:
    documents = given("Document", DOCS)

    def make(executor: Any, harm: str = "", hear: Any = lambda event: None) -> Any:
        config = Loud(harm=harm)
        return carry_out(store, "loud", config, {"documents": {"documents": documents}}, emit=hear, executor=executor)

    return make


def forget(store: Any, artifact: Any) -> None:
    store.fs.rm(store.path("artifacts", artifact.id), recursive=True)


def test_processes_make_the_bytes_of_one(loud: Any, store: Any) -> None:
    alone = loud(Here())
    rows, digest = alone.to_polars(), alone.digest
    assert alone.log("processes").decode() == str(os.getpid())
    forget(store, alone)
    said: list[str] = []
    spread = loud(Processes(3), hear=lambda event: said.append(event.get("text", "")))
    assert len(spread.log("processes").split()) > 1 and str(os.getpid()) not in spread.log("processes").decode().split()
    assert spread.digest == digest and spread.to_polars().equals(rows)
    assert spread.manifest["summary"] == {"seen": 25, "slices": 9}
    assert [text for text in said if text.startswith("slice")] == [f"slice {i}" for i in range(9)]
    efforts = spread.manifest["timings"]["workers"]
    assert sum(one["tasks"] for one in efforts.values()) == 9 and len(efforts) > 1


def test_what_a_process_raises_is_told_and_the_rest_goes_on_from_there(loud: Any, store: Any) -> None:
    with pytest.raises(UserError, match="row 3 is not to be had"):
        loud(Processes(2), "raise")
    again = loud(Processes(2))
    assert again.rows == 24


def test_a_process_that_is_killed_is_told_in_words(loud: Any) -> None:
    with pytest.raises(StageFailed, match=r"one of 2 processes was killed \(SIGKILL\)"):
        loud(Processes(2), "die")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_killed_when_all_is_done_holds_up_nobody(loud: Any, monkeypatch: Any, which: int) -> None:
    """One of two that wait for a task has the lock that the other one waits for."""
    killed: list[int] = []

    def shutdown_workers(thread: Any) -> None:
        pid = list(thread.processes.values())[which].pid
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        asked(thread)

    manager: Any = vars(process_pool)["_ExecutorManagerThread"]
    asked = manager.shutdown_workers
    monkeypatch.setattr(manager, "shutdown_workers", shutdown_workers)
    assert loud(Processes(2)).rows == 24 and killed


def test_slices_are_those_of_parts(given: Any, build: Any, store: Any) -> None:
    seen: list[Any] = []

    class Look(Stage):
        takes = {"documents": port("Document", many=True)}
        gives = "Document"

        def run(self, job: Job) -> None:
            parts = list(job.parts("documents", rows=4))
            cut = [job.part(piece) for piece in job.slices("documents", rows=4)]
            seen.append([(p.name, p.table) for p in parts])
            seen.append([(p.name, p.table) for p in cut if p])
            for part in parts:
                part.commit(part.table)

    build(Look, {"documents": given("Document", DOCS)})
    assert [name for name, _ in seen[0]] == [name for name, _ in seen[1]] and len(seen[0]) == 7
    assert all(one.equals(two) for (_, one), (_, two) in zip(*seen, strict=True))


@pytest.mark.parametrize("size", [None, 1, 2_500, 5_000, 10**9])
def test_slices_of_long_rows_are_cut_by_bytes_too(given: Any, build: Any, size: int | None) -> None:
    long = [{**row, "text": f"{row['text']} " * (1 + 40 * i)} for i, row in enumerate(DOCS)]
    files = [given("Document", long[:6]), given("Document", long[6:7]), given("Document", long[7:])]
    seen: list[Any] = []

    class Weigh(Stage):
        takes = {"documents": port("Document", many=True)}
        gives = "Document"

        def run(self, job: Job) -> None:
            cut = job.slices("documents", rows=4, size=size)
            parts = list(filter(None, map(job.part, cut)))
            seen.append((cut, [row for part in parts for row in part.table["id"].to_pylist()]))
            for part in parts:
                part.commit(part.table)

    build(Weigh, {"documents": {f"d{i}": file for i, file in enumerate(files)}})
    cut, ids = seen[0]
    assert ids == [row["id"] for row in DOCS]
    assert [piece.start for piece in cut] == [sum(p.rows for p in cut[:i]) for i in range(len(cut))]
    assert all(piece.rows <= 4 and (size is None or piece.rows == 1 or piece.bytes <= size) for piece in cut)
    assert (len(cut) == 25) == (size == 1) and (len(cut) == 7) == (size in (None, 10**9))
