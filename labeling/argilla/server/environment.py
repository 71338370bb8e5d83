"""The private Python environment that the Argilla server runs in.

It is built once per requirements file and Python version, aside and then renamed, so that a build that is
killed leaves nothing behind that could be taken for an environment.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from engine.errors import UserError
from engine.redaction import redacted
from labeling.tool.passwords import flywheel_home

_SHIPPED = Path(__file__).with_name("requirements.txt")  # in a wheel
_IN_REPOSITORY = Path(__file__).parents[3] / "requirements" / "argilla-server.txt"


def requirements() -> Path:
    return _SHIPPED if _SHIPPED.exists() else _IN_REPOSITORY


def ensure(on_step: Callable[[str], None]) -> Path:
    """The Python of the environment, built first if need be. Raises UserError when it can't be built."""
    pins = requirements().read_bytes()
    digest = sha256(pins + f"{sys.version_info[:2]}{platform.machine()}".encode()).hexdigest()[:12]
    home = flywheel_home()
    environment = home / f"argilla-env-{digest}"
    python = environment / "bin" / "python"
    if python.exists():
        return python
    home.mkdir(parents=True, exist_ok=True)
    with (home / f".argilla-env-{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two starts at once build it once
        if not python.exists():
            on_step("installing the Argilla server into an environment of its own (once)")
            aside = home / f".argilla-env-{digest}.building"
            shutil.rmtree(aside, ignore_errors=True)
            _build(aside, home)
            aside.rename(environment)
    return python


def _build(aside: Path, home: Path) -> None:
    log = home / "argilla-env.log"
    for command in _commands(_uv(), aside):
        done = subprocess.run(
            command, env=_links(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        log.write_text(redacted(done.stdout + done.stderr))
        if done.returncode:
            tail = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-12:])
            raise UserError(
                f"The Argilla server could not be installed: `{' '.join(command[:3])} ...` ended with"
                f" {done.returncode}.\n{tail}\n"
                f"The whole output is in {log}. Once the cause is mended, the same command goes on from here."
            )


def _commands(uv: str | None, aside: Path) -> list[list[str]]:
    """What builds the environment: with uv where there is one (seconds), else with pip (minutes).

    It is renamed once it is whole. That breaks the first line of its scripts (unless relocatable), and none is called.
    """
    python = str(aside / "bin" / "python")
    if uv is None:
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(requirements())]
        return [[sys.executable, "-m", "venv", str(aside)], pip]
    return [
        [uv, "venv", "--relocatable", "--python", sys.executable, str(aside)],
        [uv, "pip", "install", "--python", python, "-r", str(requirements())],
    ]


def _links() -> dict[str, str]:
    """The environment for uv, with pip's links in it: they may hold passwords, and a command line is no secret."""
    links = ",".join((os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")).split())
    return {**os.environ, "UV_FIND_LINKS": links} if links else dict(os.environ)


def _uv() -> str | None:
    beside = Path(sys.prefix) / "bin" / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")
