"""Start, stop and find the Argilla server of this machine.

Everything it owns is in one folder (`home`, mode 0700): the database, the credentials (mode 0600), logs, and
the state that says which processes run. The folder is the identity: two homes are two servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from engine.errors import UserError
from engine.store.whole_file import whole_file
from labeling.argilla.server import environment
from labeling.tool.passwords import flywheel_home

OWNER = "owner"
_READY_WITHIN = 300.0  # seconds; 6-13 are usual, a cold disk and a busy machine take longer
_STOP_WITHIN = 30.0
_SUPERVISOR = Path(__file__).parent / "embedded" / "supervise.py"


@dataclass(frozen=True)
class LocalServer:
    """A running server. `uptime` is in seconds; `pids` maps supervisor, server, redis and worker to process
    ids.
    """

    url: str
    username: str
    password_file: Path
    api_key_file: Path
    pids: dict[str, int]
    home: Path
    version: str
    uptime: float

    @property
    def api_key(self) -> str:
        return self.api_key_file.read_text().strip()


def default_home() -> Path:
    return flywheel_home() / "argilla"


def up(
    home: Path | None = None,
    *,
    port: int | None = None,
    database_url: str | None = None,
    on_step: Callable[[str], None] | None = None,
) -> LocalServer:
    """Start the server, or find the one that runs, and return once it answers.

    `port` is kept for later starts; without it the last port (at first 6900) is used if free, else any.
    `database_url` moves the data from the SQLite file in `home` to
    `postgresql://user:password@host/database`, and is kept as well. Raises UserError when the server can't
    start (with the tail of its log), or runs with other settings.
    """
    home = resolve(home)
    step = on_step or (lambda _: None)
    _private_folder(home)
    with _locked(home / "up.lock"):
        before = _settings(home)
        settings = dict(before)
        if port is not None:
            settings["port"] = port
        if database_url is not None:
            settings["database_url"] = _async_url(database_url)
        if _running(home):
            _refuse_other_settings(home, before, settings)
        try:
            for _ in range(3):  # one that was just killed may seem to run for a moment more
                if not _running(home):
                    _write_private(home / "settings.json", json.dumps(settings))
                    _start(home, step)
                server = _when_ready(home)
                if server is not None:
                    return server
            raise UserError(_why_not(home, {"failed": "the supervisor ended"}))
        except UserError:
            _write_private(home / "settings.json", json.dumps(before))  # what does not work is not kept
            raise


def _start(home: Path, step: Callable[[str], None]) -> None:
    python = environment.ensure(step)
    (home / "state.json").unlink(missing_ok=True)
    step("starting the Argilla server")
    (home / "logs").mkdir(exist_ok=True)
    with (home / "logs" / "supervisor.log").open("ab") as log:
        started = subprocess.Popen(
            [str(python), str(_SUPERVISOR), str(home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env={**os.environ, "FLYWHEEL_OUTLIVES": "1"},  # and the run that started it
            start_new_session=True,  # outlives the terminal, and a signal to the caller's group
        )
    while not _running(home) and started.poll() is None:
        time.sleep(0.02)


def down(home: Path | None = None) -> bool:
    """Stop the server and what belongs to it. False if none was running."""
    home = resolve(home)
    if not _running(home):
        return False
    supervisor = _state(home).get("pids", {}).get("supervisor")
    deadline = time.monotonic() + _STOP_WITHIN
    while supervisor is None and time.monotonic() < deadline and _running(home):  # it is only just starting
        time.sleep(0.1)
        supervisor = _state(home).get("pids", {}).get("supervisor")
    if supervisor is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)
    while _running(home):
        if time.monotonic() > deadline:
            if supervisor is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(supervisor, signal.SIGKILL)  # its children are killed with it
            break
        time.sleep(0.1)
    (home / "state.json").unlink(missing_ok=True)
    return True


def status(home: Path | None = None) -> LocalServer | None:
    """The server of this home if it runs (it may still be starting), else None."""
    home = resolve(home)
    if not _running(home):
        return None
    state, settings = _state(home), _settings(home)
    if "pids" not in state:
        return None
    return LocalServer(
        url=f"http://127.0.0.1:{state['port']}",
        username=settings["owner"],
        password_file=Path(settings["password_file"]),
        api_key_file=Path(settings["api_key_file"]),
        pids=dict(state["pids"]),
        home=home,
        version=state["version"],
        uptime=time.time() - state["started_at"],
    )


def refuse_running(home: Path) -> None:
    """Raise UserError rather than let the files of a running server be touched."""
    if _running(home):
        raise UserError(f"An Argilla server runs in {home}. Stop it first: `flywheel argilla down`.")


def read_settings(home: Path) -> dict[str, Any]:
    return _settings(home)


def resolve(home: Path | None) -> Path:
    return Path(home).expanduser().absolute() if home is not None else default_home()


def settings_of_place(home: Path) -> dict[str, str]:
    """The part of the settings that follows from where the home is."""
    return {
        "password_file": str(home / "owner.password"),
        "api_key_file": str(home / "owner.apikey"),
        "database_url": f"sqlite+aiosqlite:///{home / 'argilla.db'}?check_same_thread=False",
    }


def _when_ready(home: Path) -> LocalServer | None:
    """The server once it answers; None if its supervisor is gone without a word."""
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        running, state = _running(home), _state(home)
        if "failed" in state:
            raise UserError(_why_not(home, state))
        if not running:
            return None
        server = status(home)
        if server is not None and _answers(server.url):
            return server
        time.sleep(0.15)
    down(home)
    raise UserError(_why_not(home, {"failed": f"it did not answer within {_READY_WITHIN:.0f} s"}))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/v1/version", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _why_not(home: Path, state: dict[str, Any]) -> str:
    log = Path(state.get("log", home / "logs" / "supervisor.log"))
    lines = log.read_text(errors="replace").strip().splitlines()[-15:] if log.exists() else []
    tail = "\n".join(f"    {line}" for line in lines)
    return f"The Argilla server did not start: {state['failed']}.\nThe end of {log}:\n{tail}"


def _refuse_other_settings(home: Path, before: dict[str, Any], asked: dict[str, Any]) -> None:
    port = _state(home).get("port")
    if port is not None and asked.get("port", port) != port:
        raise UserError(
            f"The Argilla server in {home} runs on port {port}, not {asked['port']}."
            " Stop it first: `flywheel argilla down`."
        )
    if asked["database_url"] != before["database_url"]:
        raise UserError(
            f"The Argilla server in {home} runs with another database. Stop it first: `flywheel argilla down`."
        )


def _settings(home: Path) -> dict[str, Any]:
    """What a home keeps from one start to the next, made at the first."""
    path = home / "settings.json"
    if path.exists():
        return json.loads(path.read_text())
    settings = {"owner": OWNER, "auth_secret": secrets.token_urlsafe(48), **settings_of_place(home)}
    _write_private(Path(settings["password_file"]), secrets.token_urlsafe(18) + "\n")
    _write_private(Path(settings["api_key_file"]), secrets.token_urlsafe(48) + "\n")
    _write_private(path, json.dumps(settings))
    return settings


def _async_url(database_url: str) -> str:
    scheme, separator, rest = database_url.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgresql", "postgres", "sqlite"):
        raise UserError(
            f"{scheme!r} is not a database that Argilla can use."
            " Give postgresql://USER:PASSWORD@HOST/DATABASE, or nothing for a SQLite file."
        )
    driver = "sqlite+aiosqlite" if scheme.startswith("sqlite") else "postgresql+asyncpg"
    return f"{driver}://{rest}"


def _state(home: Path) -> dict[str, Any]:
    try:
        return json.loads((home / "state.json").read_text())
    except FileNotFoundError:
        return {}


def _running(home: Path) -> bool:
    """Whether a supervisor holds its lock. A lock dies with its process, whatever kills it; a pid file would
    not.
    """
    path = home / "running.lock"
    if not path.exists():
        return False
    with path.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _private_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def _write_private(path: Path, text: str) -> None:
    with whole_file(path, private=True, shared=True) as partial:
        partial.write_text(text)
