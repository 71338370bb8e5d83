"""Two writers of one artifact on an S3 server, the first of which stands still, loses its lease and comes back.

    outcome = rounds(100)          # python -c "from tests.faults.two_writers import rounds; print(rounds(100))"

In each round a writer is stopped (SIGSTOP) at a random file of the artifact, in a random one of the steps of its write; another waits, takes
over and finishes; then the first goes on (SIGCONT), sometimes while the other is still at it. The stage answers otherwise each
time, as a server does: what is mixed of two writers shows. Right is: the second finishes; the first is refused in words, or has
finished before; every file of the artifact is the one that its manifest has; the rows are all there, once, by one writer a part.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from engine.errors import FlywheelError
from engine.stage.job import Job
from engine.stage.stage import Stage
from engine.store.lease import lease
from engine.store.store import Store
from engine.store.writer import ArtifactWriter

PARTS, ROWS = 4, 3
TTL_S = "0.8"
BUCKET = "two-writers"
FAULT = "two writers of one artifact on S3, one of which comes back"


class Answers(Stage):
    """Rows that name who wrote them."""

    gives = "Document"
    tag: str

    def run(self, job: Job) -> None:
        for part in sorted({f"{i:05d}" for i in range(PARTS)} - job.committed()):
            ids = [f"{part}-{row}" for row in range(ROWS)]
            rows = {"id": ids, "parents": [[]] * ROWS, "text": [str(os.getpid())] * ROWS, "source": [""] * ROWS}
            job.commit(part, pa.table({**rows, "offset": [0] * ROWS}))


@dataclass
class Outcome:
    """How many rounds ended how, and what was wrong in words."""

    rounds: int = 0
    refused: int = 0  # the first, when it came back
    finished_first: int = 0
    wrong: list[str] = field(default_factory=lambda: [])


def rounds(count: int, seed: int = 1) -> Outcome:
    """So many rounds, each with an artifact of its own."""
    total = Outcome()
    with opened(seed) as round_of:
        for one in map(round_of, range(count)):
            total.rounds += one.rounds
            total.refused += one.refused
            total.finished_first += one.finished_first
            total.wrong += one.wrong
    return total


@contextmanager
def opened(seed: int = 1) -> Generator[Callable[[int], Outcome]]:
    """A server, and what carries out a round on it, by its number; several at once if need be."""
    with s3_server() as url:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.two_writers", "s3fs", "engine.execution.worker"])

        def round_of(number: int) -> Outcome:
            outcome = Outcome(rounds=1)
            _round(context, url, f"round{seed}.{number}", random.Random(f"{seed} {number}"), outcome)
            return outcome

        yield round_of


def _round(context: Any, url: str, tag: str, draw: random.Random, outcome: Outcome) -> None:
    stops_at, early = draw.randrange(2 * (PARTS + 2)), draw.random() < 0.5
    (first_said, first_says), (second_said, second_says) = context.Pipe(False), context.Pipe(False)
    first = context.Process(target=_write, args=(_server_environment(), url, tag, stops_at, first_says))
    first.start()
    first_says.close()
    while not (stopped := _state(first.pid) == "T") and first.is_alive():
        time.sleep(0.01)
    second = context.Process(target=_write, args=(_server_environment(), url, tag, -1, second_says))
    second.start()
    second_says.close()
    if stopped and early:
        _until_taken_over(url, tag, second)
    else:
        second.join()
    if stopped:
        os.kill(first.pid, signal.SIGCONT)
    said = [_last(pipe) for pipe in (first_said, second_said)]
    first.join()
    second.join()
    outcome.refused += "lost its turn" in said[0]
    outcome.finished_first += said[0] == "done"
    for who, text, refusable in (("first", said[0], stopped), ("second", said[1], False)):
        if text != "done" and not (refusable and "lost its turn" in text):
            outcome.wrong.append(f"{tag}: the {who} said {text!r}")
    if said[0] == "done" and stopped and _writers(url, tag) != {str(first.pid)}:  # it may have been faster
        outcome.wrong.append(f"{tag}: the first was not refused")
    outcome.wrong += [f"{tag}: {wrong}" for wrong in _look(url, tag)]


def _server_environment() -> dict[str, str]:
    """Where the server is. The process that ours are forked from may be older than the server."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def _write(environment: dict[str, str], url: str, tag: str, stops_at: int, says: Any) -> None:
    """Make the artifact, and stand still at a step: before (even) or after (odd) the look at the lease for a file."""
    os.environ.update(environment, FLYWHEEL_LEASE_S=TTL_S)
    from engine.execution.worker import carry_out

    store, steps = Store(url), iter(range(10**6))
    fence = store.fence

    def look(*parts: str) -> None:
        if next(steps) == stops_at:
            os.kill(os.getpid(), signal.SIGSTOP)
        fence(*parts)
        if next(steps) == stops_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    store.fence = look
    try:
        artifact = _folder(tag)
        with lease(store, artifact):
            carry_out(store, "answers", Answers(tag=tag), {})
        says.send("done")
    except FlywheelError as error:
        says.send(str(error))
    except BaseException as error:
        says.send(f"{type(error).__name__}: {error}")


def _folder(tag: str) -> str:
    from engine.plan.identity import folder_of, identify, key_of

    return folder_of("answers", key_of(identify("answers", Answers(tag=tag), {})))


def _look(url: str, tag: str) -> list[str]:
    """What is wrong with the artifact."""
    store = Store(url)
    made = store.get(_folder(tag))
    if made is None:
        return ["there is no artifact"]
    rows = made.to_table().select(["id", "text"]).to_pylist()
    wrong = [f"{name} is not what the manifest says" for name in made.verify()]
    if sorted(row["id"] for row in rows) != [f"{i:05d}-{row}" for i in range(PARTS) for row in range(ROWS)]:
        wrong.append(f"rows: {[row['id'] for row in rows]}")
    if any(len({row["text"] for row in rows if row["id"].startswith(f"{i:05d}")}) != 1 for i in range(PARTS)):
        wrong.append("a part is of two writers")
    there = ArtifactWriter(store, made.id).contents().files
    if there.keys() != made.manifest["files"].keys():
        wrong.append(f"files that the manifest does not know: {sorted(there.keys() - made.manifest['files'].keys())}")
    if held := [name for name in store.list("leases") if name.startswith(made.id)]:
        wrong.append(f"leases that nobody holds: {held}")
    return wrong


def _writers(url: str, tag: str) -> set[str]:
    """Who wrote the rows."""
    made = Store(url).get(_folder(tag))
    return {*made.to_table(["text"]).column("text").to_pylist()} if made else set()


def _until_taken_over(url: str, tag: str, second: Any) -> None:
    store = Store(url)
    while second.is_alive():
        with suppress(FileNotFoundError):  # between one's release and another's taking
            if json.loads(store.read("leases", f"{_folder(tag)}.json"))["holder"]["pid"] == second.pid:
                return
        time.sleep(0.02)


def _last(pipe: Any) -> str:
    try:
        return pipe.recv()
    except EOFError:
        return "nothing"


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


@contextmanager
def s3_server() -> Generator[str]:
    """A store on an S3 server in a process of its own, which the environment of this one names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in told}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        os.environ.update(told)
        import boto3
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # those of another server
        for _ in range(600):
            try:
                urllib.request.urlopen(told["AWS_ENDPOINT_URL"], timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/store"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
