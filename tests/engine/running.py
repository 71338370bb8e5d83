"""A command that is under way, and the processes it has started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOW = """\
name: {name}
stages:
  lines:
    kind: toy_read
    path: lines.txt
  loud:
    kind: toy_shout
    from: lines
    pause: {pause}
    ledger: {ledger}
"""
COMMAND = [sys.executable, "-c", "from engine.cli import main; main()"]


class Ledger:
    """What `toy_shout` wrote down: a line a part, with its process and one that it started."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.file.read_text().splitlines()] if self.file.exists() else []

    @property
    def parts(self) -> list[str]:
        return [line[0] for line in self.lines]

    @property
    def worker(self) -> int:
        return int(self.lines[-1][1])

    @property
    def pids(self) -> set[int]:
        return {int(pid) for line in self.lines for pid in line[1:]}


def slow_recipe(folder: Path, name: str = "slow", pause: float = 0.2) -> Path:
    """Six parts, one after the other, each with a pause."""
    (folder / "lines.txt").write_text("\n".join(f"line {i}" for i in range(23)))
    recipe = folder / f"{name}.yaml"
    recipe.write_text(SLOW.format(name=name, pause=pause, ledger=folder / "ledger"))
    return recipe


def start(folder: Path, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """`flywheel` with these arguments, in this folder, with the store in it."""
    env = {**os.environ, "FLYWHEEL_STORE": str(folder / "store"), **options.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=folder, env=env, text=True, **streams)


def until(happens: Callable[[], Any], within_s: float = 60) -> None:
    """Wait for something that is bound to happen."""
    end = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def alive(pids: set[int]) -> set[int]:
    """Those of these processes that have not ended."""

    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    return {pid for pid in pids if state(pid) not in ("gone", "Z", "X")}


def all_gone(pids: set[int]) -> bool:
    return not alive(pids)
