"""One real Label Studio for all tests of this folder, where it is installed: `make label-studio` installs it.

LABEL_STUDIO names its executable, if it is not on PATH or in .label-studio. One that runs is used instead when
LABEL_STUDIO_URL is set, and LABEL_STUDIO_API_KEY (a personal access token).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from labeling.label_studio.studio_client import LabelStudio, connect
from tests.test_docs import commands

ROOT = Path(__file__).parents[3]
TOKEN = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Studio:
    url: str
    key: str  # a personal access token


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if os.environ.get("LABEL_STUDIO_URL"):
        yield Studio(os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"])
        return
    program = os.environ.get("LABEL_STUDIO") or shutil.which("label-studio")
    program = program or shutil.which("label-studio", path=str(ROOT / ".label-studio" / "bin"))
    if program is None:
        pytest.skip(
            "no Label Studio on this machine: `make label-studio` installs it, or LABEL_STUDIO names its executable"
        )
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    (shown,) = (command for command in commands("docs/label_studio.md") if "start" in command)  # as the page says
    command = [program, *(str(port) if word == "8080" else word for word in shown[1:])]
    env = {
        **os.environ, "LABEL_STUDIO_BASE_DATA_DIR": str(folder), "LABEL_STUDIO_USERNAME": "lead@example.org",
        "LABEL_STUDIO_PASSWORD": "only-for-tests", "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true", "COLLECT_ANALYTICS": "false", "SENTRY_RATE": "0",
    }  # fmt: skip
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        lead = {"Authorization": f"Token {TOKEN}"}
        deadline = time.monotonic() + 600
        while True:
            try:
                if httpx.get(f"{url}/api/current-user/whoami", headers=lead, timeout=60).is_success:
                    break
            except httpx.HTTPError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        made = httpx.post(f"{url}/api/token/", headers=lead, timeout=60).raise_for_status()
        yield Studio(url, made.json()["token"])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def label_studio(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelStudio:
    """A client that the environment names, with a personal access token."""
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", studio.key)
    monkeypatch.setenv("FLYWHEEL_HOME", str(tmp_path / "home"))
    return connect()
