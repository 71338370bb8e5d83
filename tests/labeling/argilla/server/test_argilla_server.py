"""The local server: started once, found again, closed to others, and not lost by a kill or a move."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import UserError
from labeling.argilla import server
from labeling.argilla.client import Argilla, connect
from labeling.tool.task import RankingRecord, RankingTask, Submission

pytestmark = pytest.mark.skipif("ARGILLA_API_URL" in os.environ, reason="tests of a server on this machine")


def token(url: str, username: str, password: str) -> httpx.Response:
    return httpx.post(f"{url}/api/v1/token", data={"username": username, "password": password})


def test_up_again_finds_the_same_server(home: Path) -> None:
    running = server.status(home)
    again = server.up(home)
    assert running is not None
    assert (again.pids, again.url, again.version) == (running.pids, running.url, "2.8.0")
    assert again.uptime >= running.uptime > 0
    for pid in again.pids.values():
        os.kill(pid, 0)


def test_nothing_runs_in_an_empty_folder(tmp_path: Path) -> None:
    assert server.status(tmp_path) is None
    assert server.down(tmp_path) is False
    assert list(tmp_path.iterdir()) == []


def test_login_and_web_ui(home: Path) -> None:
    running = server.up(home)
    password = running.password_file.read_text().strip()
    assert token(running.url, running.username, password).status_code == 201
    assert token(running.url, running.username, "wrong").status_code == 401
    assert token(running.url, "argilla", "1234").status_code == 401  # Argilla's default user
    page = httpx.get(running.url, headers={"Accept-Encoding": "identity"})
    assert page.is_success
    assert "<title>Argilla</title>" in page.text


def test_only_the_owner_can_read_the_secrets_and_only_this_machine_can_connect(home: Path) -> None:
    running = server.up(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for secret in (running.password_file, running.api_key_file, home / "settings.json"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    port = int(running.url.rsplit(":", 1)[1])
    listening = {
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    }
    assert listening == {f"0100007F:{port:04X}"}  # 127.0.0.1 and nothing else
    # Whoever can write to Redis runs code as the worker: a socket in a private folder, no port.
    children = [pid for name, pid in running.pids.items() if name != "supervisor"]
    owned = set()
    for pid in children:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            owned |= {target.removeprefix("socket:[").rstrip("]")} if target.startswith("socket:") else set()
    ports = {
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[9] in owned
    }
    assert ports == listening
    (redis_socket,) = (home / "run").glob("*.sock")
    assert stat.S_IMODE(redis_socket.parent.stat().st_mode) == 0o700


def test_another_port_or_database_is_refused_while_it_runs(home: Path) -> None:
    with pytest.raises(UserError, match="not 1"):
        server.up(home, port=1)
    with pytest.raises(UserError, match="another database"):
        server.up(home, database_url="postgresql://u:p@127.0.0.1/other")
    with pytest.raises(UserError, match="'mysql' is not a database"):
        server.up(home, database_url="mysql://u:p@127.0.0.1/other")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} cannot be used: Address already in use"):
            server.up(tmp_path / "home", port=port)
    assert server.status(tmp_path / "home") is None
    assert str(port) not in (tmp_path / "home" / "settings.json").read_text()  # the next start is free to choose


def test_a_database_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the database does not let us in: .*127\.0\.0\.1.*[Cc]onnection refused"
    ) as caught:
        server.up(tmp_path, database_url="postgresql://u:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    assert server.status(tmp_path) is None
    assert "postgresql" not in (tmp_path / "settings.json").read_text()  # what does not work is not kept


def test_a_session_outlives_a_kill_and_requests_meanwhile_wait(home: Path) -> None:
    running = server.up(home)
    password = running.password_file.read_text().strip()
    bearer = {"Authorization": f"Bearer {token(running.url, running.username, password).json()['access_token']}"}
    os.kill(running.pids["server"], signal.SIGKILL)
    # The supervisor holds the port: a new connection waits for the next server instead of being refused.
    port = int(running.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=300) as waiting:
        waiting.sendall(b"GET /api/v1/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert waiting.recv(15) == b"HTTP/1.1 200 OK"
    assert httpx.get(f"{running.url}/api/v1/me", headers=bearer).json()["username"] == running.username
    after = server.up(home)
    assert after.pids["server"] != running.pids["server"]
    assert after.pids["supervisor"] == running.pids["supervisor"]


def test_webhooks_are_delivered_by_the_worker(home: Path, client: Argilla, task: RankingTask) -> None:
    """A real job through Redis and rq: the worker imports Argilla and our search engine."""
    heard: list[dict[str, object]] = []
    arrived = threading.Event()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: object) -> None: ...

    dataset = client.ensure_dataset(task)
    client.push(dataset, [RankingRecord("g", [{"role": "user", "content": "?"}], ["a", "b", "c"])])
    listener = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    body = {"url": f"http://127.0.0.1:{listener.server_port}", "events": ["response.created"]}
    webhook = client.call("POST", "webhooks", json=body)
    try:
        client.submit(dataset, [Submission(client.pending(dataset)[0].id, [1, 1, 2])])
        assert arrived.wait(60)
    finally:
        client.call("DELETE", f"webhooks/{webhook['id']}")
        listener.shutdown()
    assert [event["type"] for event in heard] == ["response.created"]


def judged(client: Argilla, task: RankingTask) -> set[tuple[str, str, tuple[int | None, ...]]]:
    dataset = client.ensure_dataset(task)
    return {(response.external_id, response.user, response.ranks) for response in client.pull(dataset)}


def fill(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    prompt = [{"role": "user", "content": "?"}]
    client.push(dataset, [RankingRecord(f"g{i}", prompt, ["a", "b", "c"]) for i in range(5)])
    (user,) = client.ensure_users(["ann"], task.workspace)
    ann = client.as_user(user)
    ann.submit(dataset, [Submission(record.id, [2, 1, 2]) for record in ann.pending(dataset)])


def test_backup_and_restore_elsewhere(home: Path, client: Argilla, task: RankingTask, tmp_path: Path) -> None:
    fill(client, task)
    file = server.backup(home, tmp_path / "deep" / "argilla.tar")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    elsewhere = tmp_path / "elsewhere"
    server.restore(elsewhere, file)
    try:
        moved = server.up(elsewhere)  # beside the first one: another port
        first = server.status(home)
        assert first is not None
        assert moved.url != first.url
        restored = connect(home=elsewhere)
        assert judged(restored, task) == judged(client, task)
        assert len(judged(restored, task)) == 5
        (user,) = restored.ensure_users(["ann"], task.workspace)
        assert user.password is not None
        assert token(moved.url, "ann", user.password).status_code == 201
    finally:
        server.down(elsewhere)


def test_restore_refuses_what_is_not_a_backup(home: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    with pytest.raises(UserError, match="can't be read as a backup"):
        server.restore(tmp_path / "new", tmp_path / "junk")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="flywheel argilla down"):
        server.restore(home, tmp_path / "junk")
    with pytest.raises(UserError, match="nothing to back up"):
        server.backup(tmp_path, tmp_path / "b.tar")


def test_restore_keeps_what_was_there(home: Path, tmp_path: Path) -> None:
    file = server.backup(home, tmp_path / "b.tar")
    target = tmp_path / "target"
    server.restore(target, file)
    (target / "note").write_text("mine")
    server.restore(target, file)
    assert (tmp_path / "target.before-restore" / "note").read_text() == "mine"
    assert not (target / "note").exists()


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A throw-away PostgreSQL cluster, where the machine has the programs."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL on this machine")
    # Not in pytest's folders: PostgreSQL refuses to run as root, and no one else may enter those.
    folder = Path(tempfile.mkdtemp(prefix="flywheel-postgresql-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        who = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def call(program: str, *arguments: str) -> None:
        command = [str(programs[-1] / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    call("initdb", "-A", "trust", "-U", "flywheel", "-E", "UTF8")
    call("pg_ctl", "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        yield f"postgresql://flywheel@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.slow
def test_postgresql_holds_the_same_contract(postgresql: str, tmp_path: Path, task: RankingTask) -> None:
    """The whole search contract and a round trip, on PostgreSQL."""
    running = server.up(tmp_path / "home", database_url=postgresql)
    try:
        client = connect(home=tmp_path / "home")
        fill(client, task)
        assert judged(client, task) == {(f"g{i}", "ann", (2, 1, 2)) for i in range(5)}
        before = judged(client, task)
        backup = server.backup(tmp_path / "home", tmp_path / "b.tar")
        client.call("DELETE", f"datasets/{client.ensure_dataset(task).id}")
        server.down(tmp_path / "home")
        server.restore(tmp_path / "home", backup)
        assert (tmp_path / "home.before-restore" / "argilla.dump").stat().st_size > 0
        running = server.up(tmp_path / "home")
        assert judged(connect(home=tmp_path / "home"), task) == before
        environment = {**os.environ, "ARGILLA_API_URL": running.url, "ARGILLA_API_KEY": running.api_key}
        contract = ["-m", "pytest", "-q", str(Path(__file__).with_name("test_argilla_search.py"))]
        done = subprocess.run([sys.executable, *contract], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
    finally:
        server.down(tmp_path / "home")
