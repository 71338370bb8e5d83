"""What a command takes: wall, CPU seconds of everything it starts, and the memory of each sort of process.

CPU time is what the kernel has in its books: a small process between adopts every orphan (`PR_SET_CHILD_SUBREAPER`) and waits for
all of them, so that helpers count that nobody else waited for. Memory is each process's high-water mark (VmHWM in
`/proc/PID/status`), read three times a second; `ru_maxrss` would begin with what the parent had.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.parts.scaling.bench import environment

ROOT = Path(__file__).parents[3]
FLYWHEEL = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
# Stages run with the hash seed 0, whatever the command has; here with what the command has.
HASHED = """
import os, subprocess
class Popen(subprocess.Popen):
    def __init__(self, *arguments, env=None, **more):
        if env and "PYTHONHASHSEED" in env:
            env = {**env, "PYTHONHASHSEED": os.environ["PYTHONHASHSEED"]}
        super().__init__(*arguments, env=env, **more)
subprocess.Popen = Popen
from flywheel.commandline import main
main()
"""
EVERY_S = 0.3
# What a process is, by its command line; the first that fits.
ROLES = {
    "driver": "engine.execution.keeper",
    "ray worker": "ray::",
    "ray": "/ray/",
    "process": "multiprocessing",
    "run": "flywheel.commandline",
}
BETWEEN = """
import ctypes, json, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)
code = subprocess.Popen(sys.argv[2:]).wait()
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as books:
    json.dump([code, used.ru_utime + used.ru_stime], books)
"""


class Failed(Exception):
    """A command ended with an error; the words are its last ones."""


def measured(command: list[str], **more: str) -> dict[str, Any]:
    """Run a command to its end: `wall_s`, `cpu_s`, and by role of a process the most memory that one of them had, in MB.

    Args:
        more: its environment, beyond ours.

    Raises:
        Failed: it failed.
    """
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("w+") as log:
        books = Path(home) / "books.json"
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", BETWEEN, str(books), *command],
            env=environment(**more), cwd=ROOT, stdout=log, stderr=log,
        )  # fmt: skip
        with peaks(process.pid) as memory:
            process.wait()
        wall = time.monotonic() - started
        code, cpu = json.loads(books.read_text()) if books.exists() else (process.returncode, 0.0)
        if code:
            log.seek(0)
            raise Failed(f"{' '.join(command[2:])[-200:]} ended with {code}: {log.read()[-1000:]}")
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "memory_mb": memory}


def flywheel(*arguments: str, **more: str) -> dict[str, Any]:
    """`measured` for a command of Flywheel's."""
    return measured([*FLYWHEEL, *arguments], **more)


def hashed(seed: int, *arguments: str) -> dict[str, Any]:
    """`flywheel` with another seed of Python's hashes, in the command and in all processes of its stages."""
    return measured([sys.executable, "-c", HASHED, *arguments], PYTHONHASHSEED=str(seed))


@contextmanager
def peaks(root: int) -> Generator[dict[str, float]]:
    """Within this, the most memory of a process below `root`, by role, in MB; `together` is the most that all of them had resident
    at once (pages that they share are counted for each)."""
    found: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            for role, mb in _peaks(root).items():
                found[role] = max(found.get(role, 0.0), mb)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def _peaks(root: int) -> dict[str, float]:
    now: dict[str, float] = {"together": 0.0}
    for process in below(root):
        try:
            said = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if ":" in line
            )
            line = " ".join(process.cmdline()) or process.name()
        except (OSError, psutil.Error):
            continue
        if "VmHWM" not in said:  # about to go
            continue
        role = next((role for role, sign in ROLES.items() if sign in line), "other")
        now[role] = max(now.get(role, 0.0), round(int(said["VmHWM"].split()[0]) / 1024, 1))
        now["together"] += int(said["VmRSS"].split()[0]) / 1024
    now["together"] = round(now["together"], 1)
    return now


def below(root: int) -> list[psutil.Process]:
    """A process and all that are below it."""
    try:
        first = psutil.Process(root)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def spent() -> float:
    """CPU seconds so far of all that runs on this machine. A cluster's node ignores that its workers end, so that nobody has them in the
    books: where nothing else runs, the machine has.
    """
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def busy(seconds: float = 1.0) -> float:
    """The share of all cores that was in use over this time: another's work, when none of ours is under way."""
    return round(psutil.cpu_percent(interval=seconds) / 100, 3)
