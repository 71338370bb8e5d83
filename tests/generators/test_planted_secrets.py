"""Forty secrets in forty places, a server and people's own code that tell them: none of them is in anything that a run leaves."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flywheel.commandline import main

VARIABLES = ["ANTHROPIC_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "ARGILLA_API_KEY", "GITHUB_TOKEN", "GH_PAT", "DB_PASS", "PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH", "SSHPASS", "MYAPIKEY", "CI_JOB_JWT", "SLACK_WEBHOOK_KEY", "SENTRY_DSN", "GOOGLE_API_KEY", "CLIENT_SECRET", "my_llm_key", "SESSION_COOKIE", "AZURE_STORAGE_SAS", "KAGGLE_KEY", "COMET_API_KEY"]  # fmt: skip
URLS = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "DATABASE_URL", "PIP_INDEX_URL", "UV_FIND_LINKS", "MIRROR_URL")
NAMED = "PLACE_OF_MINE"  # a recipe says that this is the key
PEM = "-----BEGIN PRIVATE KEY-----\n{}\n{}\n-----END PRIVATE KEY-----"

# What tells: it prints and raises all that is in its environment and files.
REWARDS = """
import os, sys
from pathlib import Path
from base64 import b64encode
from urllib.parse import quote

def known():
    held = [f"{k}={v}" for k, v in os.environ.items()]
    held += [file.read_text() for file in sorted(Path(os.environ["HOME"]).rglob("*")) if file.is_file()]
    return "\\n".join(held)

def told():
    return known() + b64encode(known().encode()).decode() + quote(known(), safe="") + repr(known())

def score(completions):
    print(told()); print(told(), file=sys.stderr)
    if any("raise" in text for text in completions):
        raise ValueError(told())
    return [1.0] * len(completions)

def fails(completions):
    print(told())
    raise RuntimeError(told())
"""
RECIPE = """
name: planted
seed: 1
stages:
  answers:
    kind: candidates
    from: {prompts: ./prompts.jsonl}
    n: 1
    logprobs: false
    max_failed: 0.9
    server: {model: m, key: PLACE_OF_MINE, attempts: 2}
  scores:
    kind: judge
    max_failed: 0.9
    from: {candidates: answers}
    rules: {mine: {python: "rewards.py:score"}}
"""
FAILING = """
name: failing
stages:
  scores:
    kind: judge
    from: ./answers.jsonl
    rules: {mine: {python: "rewards.py:fails"}}
"""


class Echo(BaseHTTPRequestHandler):
    """A server that tells what it was sent, and with what."""

    protocol_version = "HTTP/1.1"
    status = 0

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        key = self.headers["authorization"].split()[-1]
        self._send(
            200, {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": f"m {key}", "object": "model"}]}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][-1]["content"]
        headers = dict(self.headers.items())
        encoded = base64.b64encode(json.dumps(headers).encode()).decode()
        told = {
            "error": {
                "message": f"{headers} {encoded} {urllib.parse.quote(str(headers))}",
                "param": self.headers["authorization"],
            }
        }
        code = Echo.status or {"400": 400, "500": 500}.get(question, 0)
        if code:
            return self._send(code, told)
        message = {"role": "assistant", "content": "raise" if question == "raise" else f"{question}!"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self._send(
            200,
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage},
        )
        return None

    def _send(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.send_header("x-echo", self.headers["authorization"])
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    Echo.status = 0
    server.shutdown()


def plant(home: Path, port: int) -> tuple[dict[str, str], list[str]]:
    """The environment and the files in it, and the secrets that they hold."""
    count = iter(range(100))

    def secret() -> str:
        number = next(count)
        return f"pl4nt{number:02d}/{'qW7+zX9'[number % 5 :]}={number * 7919:06d}x"

    found: list[str] = []

    def new() -> str:
        found.append(secret())
        return found[-1]

    environment = {name: new() for name in (*VARIABLES, NAMED)}
    for name in URLS:
        environment[name] = f"http://someone:{urllib.parse.quote(new(), safe='')}@nowhere.invalid:3128"
    environment["OPENAI_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
    lines = [base64.b64encode(f"{new()}{'.' * 20}".encode()).decode() for _ in range(2)]
    found[-2:] = lines
    environment["TLS_CERT"] = PEM.format(*lines)
    (home / ".netrc").write_text(f"machine h.invalid login ann password {new()}\n")
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text(new())
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(f"[default]\naws_access_key_id = {new()}\naws_secret_access_key = {new()}\n")
    assert len(found) >= 40
    return {**environment, "HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}, found


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it is, percent-encoded, escaped, and its middle in base64 at each of the places where it may begin."""
    data = secret.encode()
    yield data
    yield urllib.parse.quote(secret, safe="").encode()
    yield secret.replace("/", "\\/").encode()
    for before in range(3):
        start = 3 if before else 0
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + data)[start + 1 : (before + len(data)) // 3 * 4 - 1]


def left(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every byte that lies there, files in Parquet and SQLite also as what they hold."""
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        name = file.relative_to(folder).as_posix()
        yield name, file.read_bytes()
        if file.suffix == ".parquet":
            yield name, json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        if file.suffix in (".sqlite", ".db"):
            with contextlib.closing(sqlite3.connect(file)) as database:
                yield name, "\n".join(database.iterdump()).encode()


@contextlib.contextmanager
def watched(lines: set[bytes]) -> Iterator[None]:
    """Adds the command line of every process that is there meanwhile."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    lines.add(file.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_no_byte_that_a_run_leaves_holds_a_secret(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    environment, secrets = plant(home, port)
    theirs = secrets[3]  # that of one row, where somebody put it as data
    prompts = ["good", "400", "500", "raise", theirs]
    (here / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    (here / "answers.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b", "reference": "c"}))
    (here / "rewards.py").write_text(REWARDS)
    (here / "planted.yaml").write_text(RECIPE)
    (here / "failing.yaml").write_text(FAILING)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLYWHEEL_STORE", str(here / "store"))
    monkeypatch.chdir(here)
    told: list[bytes] = []
    program = [
        sys.executable,
        "-P",
        "-c",
        "import sys; sys.argv[0] = 'flywheel'; from flywheel.commandline import main; main()",
    ]

    def run(*arguments: str, code: int) -> str:
        done = subprocess.run([*program, "run", *arguments], capture_output=True, timeout=300)
        told.extend([done.stdout, done.stderr])
        text = (done.stdout + done.stderr).decode()
        assert done.returncode == code, text[:3000]
        return text

    def show(*arguments: str) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["flywheel", *arguments])
            with contextlib.suppress(SystemExit):
                main()
        assert "Traceback" not in out.getvalue()
        told.append(out.getvalue().encode())

    lines: set[bytes] = set()
    with watched(lines):
        run("planted.yaml", "--json", code=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(NAMED)  # no secret where no recipe says so
            assert "[hidden]" in run("failing.yaml", code=2)
            patch.setenv("OPENAI_BASE_URL", environment["MIRROR_URL"])  # it is refused, and not told
            assert "[hidden]@nowhere" in run("planted.yaml", "--set", "seed=3", code=2)
        Echo.status = 401
        assert "[hidden]" in run("planted.yaml", "--set", "seed=2", code=2)
    assert any(b"engine.execution.keeper" in line for line in lines)
    Echo.status = 0
    for arguments in (
        ["status"], ["status", "--json"], ["show", "failing/scores"], ["show", "planted/scores", "--rejected"], ["report", "planted"],
        ["show", "planted/answers", "--rejected", "-n", "2"], ["export", "planted/scores", "--to", "exported"],
        ["plan", "planted.yaml", "--json", "--set", "answers.server.model=other"], ["plan", "planted.yaml", "--why"],
    ):  # fmt: skip
        show(*arguments)

    # The server's refusals and the reward's words are there, as far as they are no secrets.
    rejected = [data for name, data in left(here) if "/rejected/" in name and b'"reason"' in data]
    assert b"400" in b"".join(rejected) and b"raised for this answer" in b"".join(rejected)
    logs = [name for name, data in left(here) if name.endswith("stage.log") and b"[hidden]" in data]
    assert any(name.startswith("store/artifacts/") for name in logs) and any(
        name.startswith("store/work/") for name in logs
    )
    for log in (here / "store/work").rglob("*.log"):
        assert log.stat().st_mode & 0o077 == 0, log

    # Rows are data: what somebody put there is there, in the store's rows and in what shows rows, and as it was.
    assert any(
        theirs.encode() in data for name, data in left(here) if name.startswith("store/artifacts/") and "/data/" in name
    )
    everywhere = [*left(here), *(("printed", data) for data in told), *(("a command line", line) for line in lines)]
    found = {
        (name, secret) for name, data in everywhere for secret in secrets for form in forms(secret)
        if form in data and not (secret == theirs and (name.endswith((".jsonl", ".parquet", ".sqlite", ".sqlite-wal", ".html")) or name == "printed"))
    }  # fmt: skip
    assert found == set()
    assert len(everywhere) > 40 and os.environ["HOME"] == str(home)
