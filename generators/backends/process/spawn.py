"""Python processes of our own: they import this project and nothing that merely lies where somebody stands.

With `-P` neither the working folder nor a script's is on a process's path, so that a folder `engine/` or a file
`tokenize.py` there shadows nothing.
"""

from __future__ import annotations

import os
import signal
import site
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from engine.execution import threads

ROOT = str(Path(__file__).resolve().parents[3])
# What torchrun and accelerate leave in the environment: an engine would take itself for one of the training processes.
TRAINING = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
_spawner = ThreadPoolExecutor(1, "spawner")


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(devices: str | None = None) -> dict[str, str]:
    """This process's environment, as an engine needs it, with threads that share the machine.

    Args:
        devices: the GPUs it may see, as CUDA_VISIBLE_DEVICES takes them; None: all.
    """
    variables = {name: value for name, value in threads.environment().items() if not name.startswith(TRAINING)}
    path = import_path()
    if path or "PYTHONPATH" in variables:
        variables["PYTHONPATH"] = os.pathsep.join(path)
    return variables if devices is None else {**variables, "CUDA_VISIBLE_DEVICES": devices}


def import_path() -> list[str]:
    """PYTHONPATH for a child: ours, and before it this project's folder where a child would not find it by itself.

    An installed project is found without (in site-packages, or by a `.pth` file there), and a folder in PYTHONPATH comes
    before the standard library.
    """
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]  # "" is the working folder
    return known if ROOT in known or ROOT in _installed() else [ROOT, *known]


@cache
def _installed() -> set[str]:
    """The folders that every Python process of this environment has on its path."""
    folders = [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    lists = [(folder, file.read_text(errors="replace")) for folder in folders for file in folder.glob("*.pth")]
    return {*map(str, folders), *(str(folder / line) for folder, lines in lists for line in lines.splitlines())}


def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """A child from a thread that lives as long as this process: "die with the parent" means with the thread (prctl(2))."""
    return _spawner.submit(subprocess.Popen[bytes], command, **options).result()


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends, even by SIGKILL (Linux; elsewhere EOF does it)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, int(by))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), by)
