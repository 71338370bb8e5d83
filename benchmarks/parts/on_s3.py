"""A whole recipe with its store on S3, killed again and again and continued: the digests are those of a store on disk.

    python -m benchmarks.parts.on_s3 [KILLS] [SEED]

The server (moto's) runs in a process of its own. It counts what it is asked, and kills: when so many writes have come since the beginning, and
then so many other requests, or the next write if that comes before. So a kill falls into the same work on any machine, and every one
that is asked for happens. Every second one strikes when the request has been carried out and its answer is not sent yet. Victims are in turn
the command, the stage's processes, and both.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.store.store import Store

ROOT = Path(__file__).parents[2]
FLYWHEEL = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
BUCKET = "flywheel"
VICTIMS = ("command", "stage", "both")
RECIPE = """\
name: on_s3
seed: 7
stages:
  texts: {kind: read, paths: ["texts/*.jsonl"]}
  clean: {kind: filter, from: texts, min_words: 20}
  unique: {kind: dedup, from: clean, threshold: 0.8}
  shards: {kind: tokenize, from: unique, vocab_size: 500, block: 64}
  answers: {kind: candidates, from: {model: ./model, prompts: ./prompts.jsonl}, n: 4, max_tokens: 16, partition: 4, engine: transformers}
  verdicts: {kind: judge, from: answers, rules: {longer: "length"}}
  rankings: {kind: ai_feedback, from: {candidates: answers, verdicts: verdicts}, metrics: [longer]}
  preferences: {kind: preferences, from: rankings, validation: 0.2}
"""


def rounds(kills: int, seed: int) -> dict[str, Any]:
    """Run the recipe on disk, on S3, and on S3 with so many kills.

    Returns:
        `same`: whether all digests are equal; `problems` in words; `requests` by verb of the run that was left alone (`calm`), of all
        attempts of the other (`killed`), and as the stages of the first counted theirs (`stages`).
    """
    with tempfile.TemporaryDirectory() as folder:
        return _rounds(prepare(Path(folder)), kills, seed)


def prepare(folder: Path, documents: int = 400) -> Path:
    """The recipe, beside the texts, prompts and the model that it takes."""
    from tests.generators.conftest import build_model

    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(500)]
    texts = [" ".join(rng.choices(words, k=rng.randint(10, 60))) for _ in range(documents // 2)]
    while len(texts) < documents:  # copies, and near-duplicates of near-duplicates
        text = rng.choice(texts).split()
        text[rng.randrange(len(text))] = rng.choice(words)
        texts.append(" ".join(text))
    (folder / "texts").mkdir()
    for number in range(4):
        rows = (json.dumps({"text": text}) for text in texts[number::4])
        (folder / "texts" / f"{number}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "What is {n} times {n + 1}?"}}\n' for n in range(12)))
    build_model(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def _rounds(recipe: Path, kills: int, seed: int) -> dict[str, Any]:
    problems: list[str] = []
    local = recipe.parent / "store"
    if said := attempt(recipe, str(local), {}):
        return {"same": False, "problems": [f"on disk: {said}"], "requests": {}}
    truth = digests(str(local))
    with server(recipe.parent / "server") as s3:
        told = s3.environment(recipe.parent / "scratch-calm")
        if said := attempt(recipe, s3.url("calm"), told):
            problems.append(f"left alone: {said}")
        calm, writes = s3.requests(), s3.requests().get("PUT", 0)
        with at(told):
            made = {artifact.id: artifact for artifact in Store(s3.url("calm")).artifacts()}
        stages = Counter[str]()
        for artifact in made.values():
            stages.update(artifact.manifest["timings"].get("requests", {}))
        if {name: artifact.digest for name, artifact in made.items()} != truth:
            problems.append("left alone: other digests than on disk")
        draw = random.Random(seed)
        points = [
            Point(write, draw.randrange(4), late=bool(number % 2), victims=VICTIMS[number % 3])
            for number, write in enumerate(sorted(draw.sample(range(1, max(writes, kills + 1)), kills)))
        ]
        killed, problem = storm(s3, recipe, "storm", points)
        problems += problem
        with at(s3.environment(recipe.parent / "scratch-storm")):
            same = digests(s3.url("storm")) == truth
    if not same:
        problems.append("killed and continued: other digests than on disk")
    requests = {"calm": calm, "killed": killed, "stages": dict(sorted(stages.items()))}
    return {
        "same": same and not problems,
        "problems": problems,
        "requests": requests,
        "kills": kills,
        "artifacts": len(truth),
    }


def storm(s3: Server, recipe: Path, prefix: str, points: Iterable[Point]) -> tuple[dict[str, int], list[str]]:
    """Run a recipe on S3, killed at each of these points and started again, and then to its end: requests by verb, problems."""
    problems: list[str] = []
    environment = s3.environment(recipe.parent / f"scratch-{prefix}")
    s3.begin()
    for point in points:
        s3.arm(point)
        said = attempt(recipe, s3.url(prefix), environment, s3.started)
        if not s3.struck:
            problems.append(f"{point}: it ended before ({said or 'well'})")
        elif not said:
            problems.append(f"{point}: it ended well, though it was killed")
        elif "Traceback (most recent call last)" in said:
            problems.append(f"{point}: {said}")
    s3.arm(None)
    if said := attempt(recipe, s3.url(prefix), environment):
        problems.append(f"to its end: {said}")
    return s3.requests(), problems


def attempt(
    recipe: Path, store: str, environment: dict[str, str], started: Callable[[int], None] = lambda pid: None
) -> str:
    """`flywheel run`; what it said last if it did not end well, else nothing."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*FLYWHEEL, "run", str(recipe), "--store", store],
            cwd=ROOT, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment},
        )  # fmt: skip
        started(process.pid)
        code = process.wait()
        said.seek(0)
        return said.read()[-1500:] or f"exit code {code}" if code else ""


def digests(url: str) -> dict[str, str]:
    return {artifact.id: artifact.digest for artifact in Store(url).artifacts()}


@contextmanager
def at(environment: dict[str, str]) -> Generator[None]:
    """In this process, too, the server is where it is."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


# -- the server ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """So many writes since the beginning, and so many other requests after that (or the next write).

    Attributes:
        late: the request is carried out first.
        victims: "command", "stage" (all processes below it), or "both".
    """

    writes: int
    others: int
    late: bool
    victims: str


class Server:
    """The other side: a folder with `trace` (a line for each request), `point.json` and `struck`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._begun = 0

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def environment(self, scratch: Path) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "FLYWHEEL_SCRATCH": str(scratch),
        }  # fmt: skip

    def begin(self) -> None:
        """Count anew."""
        self._begun = len(self._trace())

    def arm(self, point: Point | None) -> None:
        (self.folder / "struck").unlink(missing_ok=True)
        told = point and {**point.__dict__, "begun": self._begun, "pid": None}
        _write(self.folder / "point.json", json.dumps(told))

    def started(self, pid: int) -> None:
        told = json.loads((self.folder / "point.json").read_text())
        _write(self.folder / "point.json", json.dumps({**told, "pid": pid}))

    @property
    def struck(self) -> bool:
        return (self.folder / "struck").exists()

    def requests(self) -> dict[str, int]:
        return dict(sorted(Counter(self._trace()[self._begun :]).items()))

    def _trace(self) -> list[str]:
        return (self.folder / "trace").read_text().split()


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


@contextmanager
def server(folder: Path) -> Generator[Server]:
    """moto's server with an empty bucket, in a process of its own."""
    folder.mkdir()
    (folder / "trace").touch()
    (folder / "point.json").write_text("null")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.parts.on_s3", "serve", str(folder), str(port)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(
                    urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT"), timeout=9
                ).close()
                break
            except OSError:
                time.sleep(0.1)
        found = Server(folder, port)
        found.begin()
        yield found
    finally:
        process.kill()
        process.wait()


class _Counting:
    """A WSGI application that counts what it is asked, and kills at a point."""

    def __init__(self, app: Any, folder: Path) -> None:
        self._app, self._folder, self._lock = app, folder, threading.Lock()
        self._trace: list[str] = []

    def __call__(self, environ: dict[str, Any], answer: Any) -> Iterable[bytes]:
        query, verb = environ.get("QUERY_STRING", ""), environ["REQUEST_METHOD"]
        if "list-type=2" in query:
            verb = "LIST"
        elif verb == "POST":
            verb = "DELETE" if query.startswith("delete") else "PUT"
        with self._lock:
            due = self._due(verb)
            self._trace.append(verb)
            with (self._folder / "trace").open("a") as file:
                file.write(f"{verb}\n")
        if due and not due["late"]:
            self._strike(due)
        given = self._app(environ, answer)
        if due and due["late"]:
            self._strike(due)
        return given

    def _due(self, verb: str) -> dict[str, Any] | None:
        """The point, if this is it."""
        told = json.loads((self._folder / "point.json").read_text())
        if not told or told["pid"] is None or (self._folder / "struck").exists():
            return None
        since = self._trace[told["begun"] :]
        last = next((n for n in range(len(since)) if since[: n + 1].count("PUT") >= told["writes"]), None)
        if last is None or not (verb == "PUT" or len(since) - last - 1 >= told["others"]):
            return None
        (self._folder / "struck").touch()
        return told

    def _strike(self, point: dict[str, Any]) -> None:
        try:
            command = psutil.Process(point["pid"])
            below = command.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        victims = {"command": [command], "stage": below, "both": [*below, command]}[point["victims"]]
        for process in victims or [command]:  # between two stages there is the command alone
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue


def _serve(folder: Path, port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = _Counting(DomainDispatcherApplication(create_backend_app), folder)
    run_simple("127.0.0.1", port, app, threaded=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        told = rounds(*map(int, [*sys.argv[1:], *("10", "0")[len(sys.argv) - 1 :]]))
        print(json.dumps(told, indent=1))
