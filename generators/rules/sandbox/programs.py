"""Run a program that a model wrote where it can do no harm, and grade one where it can't reach its grade.

    run("print(6 * 7)", Limits(cpu_s=2)).stdout                         # "42\\n"
    grade("def double(x): return 2 * x", "assert double(2) == 4").ok    # True

A graded program and its tests are two processes. The tests, what they expect and the verdict are in the judge's (`grading/judge_process.py`); the
program's answers what the judge asks, by value (`remote_objects.py`, `by_value.py`). Both are held back by the kernel, not by
Python (`confinement.py`), from before the first foreign line to the end:

1. Files: it writes below its own empty folder alone, which is gone afterwards, and changes no mode, owner, time or attribute of any
   file. It reads the standard library, the system's shared libraries and time zones, and nothing else: no home, no /proc.
2. Disk: all that it writes is bounded together, in bytes and in files: by a file system of its own in memory, or, where the kernel
   gives none, by looking fifty times a second. What it prints is bounded, too.
3. Memory: the address space, files in memory included. Shared memory, semaphores and message queues, System V's and POSIX's, can't be made.
4. Time: CPU seconds of all threads together, and wall time.
5. No processes: no fork, no exec; 64 open files at most, and 64 threads (looked at fifty times a second). No signals but to itself, no
   tracing, nobody else's memory.
6. No network: no sockets but pairs that are connected to each other.
7. Nothing of the environment: no variables, no descriptors, no terminal, no arguments.
8. No rights: no capabilities, none to be gained; no system call but some hundred and thirty (`system_calls.py`).

Where the kernel refuses one of these, nothing is run (`Unsafe`) unless `weaker` is set; `missing` says what it is. bubblewrap, where it
is installed and works, adds namespaces: the file system has nothing but what a program may read.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from signal import SIGKILL, SIGXCPU
from typing import IO, Any, Literal

from generators.rules.sandbox.confinement import READABLE, python_folders

UNAVAILABLE = 97  # exit code of a process that could not be held back
SHOWN = 64 * 1024  # bytes of output that are kept
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Limits:
    """What a program may use; its judge may use as much again.

    Attributes:
        cpu_s: seconds of CPU, of all its threads together.
        wall_s: seconds from start to end.
        memory_mb: address space, the interpreter's own 30 MB included.
        disk_mb: all files that it writes, together; and as much for what it prints, on either stream.
    """

    cpu_s: int = 5
    wall_s: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "ok" (it ran to its last line; graded: its tests did), "failed" (an exception, or it left early), "timeout", or
            "memory".
        stdout, stderr: the first 64 KiB.
        seconds: wall time.
    """

    status: Literal["ok", "failed", "timeout", "memory"]
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def detail(self) -> str:
        """The last line it had to say, for a reason of rejection."""
        said = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return f"{self.status}: {said[-1][:200]}" if said else self.status


class Unsafe(RuntimeError):
    """This machine can't hold a program back, so none is run."""


def run(program: str, limits: Limits | None = None, stdin: str = "", weaker: bool = False) -> Outcome:
    """Run a Python program (standard library only) in a process of its own.

    "ok" is the program's word, and worth no more than what it prints: `grade` says whether it is right.

    Args:
        weaker: also where the kernel refuses a part of the sandbox.

    Raises:
        Unsafe: the kernel refuses a part of the sandbox.
    """
    return _carried_out({"source": program}, ["alone"], limits or Limits(), stdin, weaker)


def grade(program: str, tests: str, limits: Limits | None = None, weaker: bool = False) -> Outcome:
    """Whether a program passes its tests: "ok" if the last line of the tests was reached.

    Args:
        tests: Python that raises if the program is wrong, and uses its names.

    Raises:
        Unsafe: as `run`.
    """
    return _carried_out({"source": program, "tests": tests}, ["program", "judge"], limits or Limits(), "", weaker)


def together(jobs: Sequence[Callable[[], Outcome]], workers: int = 0) -> list[Outcome]:
    """Carry out several at once (0: one a core), in order."""
    from engine.execution.threads import cores

    with ThreadPoolExecutor(workers or cores()) as pool:
        return list(pool.map(lambda job: job(), jobs))


@cache
def missing() -> tuple[str, ...]:
    """What this machine's kernel refuses of the sandbox, in words; empty where it holds everything."""
    try:
        outcome = _carried_out({"probe": True}, ["alone"], Limits(), "", weaker=False)
    except Unsafe as error:
        return (str(error),)
    return () if outcome.ok else (outcome.detail,)


def examine() -> tuple[str, bool | None]:
    """For `flywheel doctor`: whether programs can be held back here, and by what."""
    if refused := missing():
        return f"{'; '.join(refused)}. Programs are not run, but by stages with `sandbox: weaker`", None
    return f"holds everything{', in bubblewrap' if bubblewrap() else ''}", True


def _carried_out(order: dict[str, Any], roles: list[str], limits: Limits, stdin: str, weaker: bool) -> Outcome:
    graded = len(roles) == 2
    with contextlib.ExitStack() as opened:
        given = opened.enter_context(tempfile.TemporaryFile())
        given.write(stdin.encode("utf-8", "replace"))
        given.seek(0)
        shown = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(4 if graded else 2)]
        ours, theirs = (opened.enter_context(one) for one in socket.socketpair())
        told, report = (
            opened.enter_context(os.fdopen(fd, mode)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        )
        job = {"roles": roles, "cpu_s": limits.cpu_s, "wall_s": limits.wall_s, "memory": limits.memory_mb << 20,
               "disk": limits.disk_mb << 20, "weaker": weaker}  # fmt: skip
        started = time.monotonic()
        FORKS.start(job, [report.fileno(), given.fileno(), *(one.fileno() for one in shown), theirs.fileno()])
        theirs.close()
        report.close()
        with contextlib.suppress(OSError):  # it is gone before it has read everything: its exit code tells
            ours.settimeout(limits.wall_s)
            ours.sendall(json.dumps(order).encode())
            ours.shutdown(socket.SHUT_WR)
        said = told.read()
        seconds = time.monotonic() - started
        ours.settimeout(1.0)
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := ours.recv(4096):
                answer += chunk
        texts = [_start_of(one) for one in shown]
    if not said:
        raise RuntimeError("the process that programs are forked from ended in the middle of one.")
    ended: dict[str, Any] = json.loads(said)
    codes, why = ended["codes"], ended["why"]
    if UNAVAILABLE in codes.values():
        raise Unsafe(f"this machine's kernel refuses a part of the sandbox: {(texts[-1] or texts[1]).strip()}")
    if why.startswith("error"):
        raise RuntimeError(f"a program could not be run: {why}")
    stdout, stderr = "".join(texts[::2]), "".join(texts[1::2])
    passed = _passed(answer) if graded else answer in (b"done\n", b"held\n") and codes.get("alone") == 0
    if passed and not why:
        return Outcome("ok", stdout, stderr, seconds)
    if why == "timeout" or {-SIGXCPU, -SIGKILL} & {*codes.values()}:
        return Outcome("timeout", stdout, stderr, seconds)
    if why:
        return Outcome("failed", stdout, stderr + f"it used too much: {why}\n", seconds)
    if "MemoryError" in stderr:
        return Outcome("memory", stdout, stderr, seconds)
    early = "" if any(codes.values()) or graded or "left before" in stderr else "it left before its last line\n"
    return Outcome("failed", stdout, stderr + early, seconds)


def _passed(answer: bytes) -> bool:
    try:
        return json.loads(answer) == {"passed": True}
    except ValueError:
        return False


def _start_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(SHOWN).decode("utf-8", "replace")


class Forks:
    """The process that sandboxed ones are forked from, started when it is first needed; a fork of this process starts its own."""

    def __init__(self) -> None:
        self.forget()

    def start(self, job: dict[str, Any], files: list[int]) -> None:
        """Hand a job over; `files` are for its processes (`zygote.py`)."""
        message = json.dumps(job).encode()
        with self._lock:
            for attempt in (1, 2):
                process, control = self._held or self._started()
                self._held = process, control
                try:
                    socket.send_fds(control, [message], files)
                    return
                except OSError:  # it is gone
                    self._end()
                    if attempt == 2:
                        raise

    def _started(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
            command = [
                python,
                "-s",
                "-S",
                "-P",
                "-B",
                str(Path(__file__).with_name("zygote.py")),
                str(theirs.fileno()),
                str(ROOT),
            ]
            process = subprocess.Popen(
                [*bubblewrap(), *command], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True, cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "HOME": "/nonexistent"},
            )  # fmt: skip
        return process, ours

    def _end(self) -> None:
        held, self._held = self._held, None
        if held:
            process, control = held
            control.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a fork: the process is the parent's."""
        self._lock = threading.Lock()
        self._held: tuple[subprocess.Popen[bytes], socket.socket] | None = None


@cache
def bubblewrap() -> tuple[str, ...]:
    """The command that has bubblewrap run another with a file system of its own; empty where it is not there or does not work."""
    found = shutil.which("bwrap")
    if not found:
        return ()
    base = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    seen = {str(base), *python_folders(), str(Path(__file__).parents[1]), str(ROOT / "generators" / "__init__.py")}
    seen |= {path for path in READABLE if not path.startswith("/dev") and Path(path).exists()}
    command = [found, "--unshare-all", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--new-session"]
    for path in sorted(seen, key=len):
        command += (
            ["--symlink", str(Path(path).readlink()), path]
            if Path(path).is_symlink() and Path(path).is_dir()
            else ["--ro-bind", path, path]
        )
    tried = subprocess.run(
        [*command, str(base), "-s", "-S", "-c", "import ctypes, json"], capture_output=True, stdin=subprocess.DEVNULL
    )
    return tuple(command) if tried.returncode == 0 else ()


FORKS = Forks()
atexit.register(FORKS.close)
os.register_at_fork(after_in_child=FORKS.forget)
