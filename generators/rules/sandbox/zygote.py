"""The process that sandboxed processes are forked from: a Python that has started already, which nothing foreign has run in.

It reads jobs from a socket (one message each: JSON, and the files the job's processes get). For each it forks a leader, which forks
the job's processes, watches them and reports how they ended: one that runs a program, or two, a program and the judge of it, which
alone can reach who asked.

    python zygote.py FD ROOT

It ends when the other end of its socket is closed, and what it has forked ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started by its path, in an interpreter that has the standard library alone
    sys.path.insert(0, sys.argv[2])

import random
import traceback

from generators.rules.grading.judge_process import judge
from generators.rules.grading.program_process import answer, run_program
from generators.rules.sandbox import confinement

# What programs import most is imported once, here.
PRELOADED = (
    "asyncio", "bisect", "collections", "copy", "ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "math", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
UNAVAILABLE = 97  # exit code of a process that could not be held back
MOST_THREADS = 64
LOOK_S = 0.02  # between two looks at what can only be watched
FILES = 128  # a message brings at most


class Zygote:
    """Forks a leader for each job."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        confinement.own_namespaces(network=True)
        self._folder = tempfile.mkdtemp(prefix="sandbox-")
        self._own_disk = self._gives_disks()

    def _gives_disks(self) -> bool:
        """Whether a process may have a file system of its own. Asked once: where it gives one, it gives one always."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(theirs, b"1" if confinement.own_disk(self._folder, 1 << 20) else b"0")
            os._exit(0)
        os.close(theirs)
        answer = os.read(ours, 1)
        os.close(ours)
        return answer == b"1"

    def run(self) -> None:
        """Until the other end is closed."""
        gc.collect()
        gc.freeze()
        try:
            while True:
                data, files, _, _ = socket.recv_fds(self._control, 1 << 16, FILES)
                if not data:
                    return
                if not os.fork():
                    Leader(json.loads(data), files, self._control, "" if not self._own_disk else self._folder).lead()
                for one in files:
                    os.close(one)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


class Leader:
    """The process of one job: it has what the job's processes share, forks them, watches them, and reports."""

    def __init__(self, order: dict[str, Any], files: list[int], control: socket.socket, mounted_at: str) -> None:
        confinement.die_with_parent()
        control.close()
        self._order, (self._report, *self._files) = order, files
        self._mounted_at = mounted_at
        self._folder = mounted_at or tempfile.mkdtemp(prefix="sandbox-")
        self._pids: dict[int, str] = {}
        self._codes: dict[str, int] = {}
        self._why = ""

    def lead(self) -> None:
        """It never returns."""
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            if self._mounted_at and not confinement.own_disk(self._folder, self._order["disk"]):
                raise OSError("the kernel gave no file system in memory, which it gave before")
            self._start()
            self._watch()
        except BaseException as error:
            self._why = f"error: {error}"
        finally:
            for pid in self._pids:
                os.kill(pid, signal.SIGKILL)
            if not self._mounted_at:
                shutil.rmtree(self._folder, ignore_errors=True)
            report = {"codes": self._codes, "why": self._why, "own_disk": bool(self._mounted_at)}
            with contextlib.suppress(OSError):
                os.write(self._report, json.dumps(report).encode())
            os._exit(0)

    def _start(self) -> None:
        files, roles = self._files, self._order["roles"]
        ends = [end.detach() for end in socket.socketpair()] if len(roles) == 2 else []
        given = {
            "alone": files,
            "program": [*files[:3], *ends[:1]],
            "judge": [files[0], *files[3:5], *ends[1:], *files[5:]],
        }
        for role in roles:
            pid = os.fork()
            if not pid:
                self._be(role, given[role])
            self._pids[pid] = role
        for one in (*files, *ends):
            os.close(one)

    def _be(self, role: str, files: list[int]) -> None:
        """In the child: it never returns."""
        code = 1
        try:
            confinement.die_with_parent()
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            for place, fd in enumerate([fcntl.fcntl(one, fcntl.F_DUPFD, 64) for one in files]):
                os.dup2(fd, place, inheritable=True)
            os.closerange(len(files), 1 << 16)
            os.chdir(self._folder)
            os.environ.update(HOME=self._folder, TMPDIR=self._folder)
            tempfile.tempdir = None
            order = self._order
            confinement.limit(order["cpu_s"], order["memory"], order["disk"])
            try:
                confinement.confine(self._folder, order["weaker"])
            except confinement.Refused as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(UNAVAILABLE)
            code = _play(role)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                traceback.print_exception(error)
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(code)

    def _watch(self) -> None:
        end = time.monotonic() + self._order["wall_s"]
        while self._pids:
            signal.sigtimedwait({signal.SIGCHLD}, max(0.0, min(LOOK_S, end - time.monotonic())))
            while self._pids:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                role = self._pids.pop(pid)
                self._codes[role] = os.waitstatus_to_exitcode(status)
                if role == "judge":
                    return
            self._why = self._too_much() or ("timeout" if time.monotonic() >= end else "")
            if self._why:
                return

    def _too_much(self) -> str:
        if any(_threads(pid) > MOST_THREADS for pid in self._pids):
            return "threads"
        return "disk" if not self._mounted_at and _fills(self._folder, self._order["disk"]) else ""


def _threads(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("Threads:")[2].split(None, 1)[0])


def _fills(folder: str, most: int) -> bool:
    size = entries = 0
    for place, folders, names in os.walk(folder):
        entries += len(folders) + len(names)
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(Path(place) / name).st_blocks * 512
        if size > most or entries > confinement.ENTRIES:
            return True
    return False


def _play(role: str) -> int:
    """What this process was forked for; its exit code."""
    random.seed(0)
    if role == "program":
        answer(socket.socket(fileno=3))
        return 0
    order_from = socket.socket(fileno=4 if role == "judge" else 3)
    data = bytearray()
    while chunk := order_from.recv(1 << 16):
        data += chunk
    order = json.loads(data)
    if role == "judge":
        judge(socket.socket(fileno=3), order_from, order)
        return 0
    if order.get("probe"):
        order_from.sendall(b"held\n")
        return 0
    if not run_program(order["source"]):
        return 1
    order_from.sendall(b"done\n")
    return 0


if __name__ == "__main__":
    sys.path.remove(sys.argv[2])
    for name in PRELOADED:
        import_module(name)
    for variable in {*os.environ} - {"PATH", "LANG", "HOME", "PYTHONHASHSEED"}:
        del os.environ[variable]
    Zygote(socket.socket(fileno=int(sys.argv[1]))).run()
