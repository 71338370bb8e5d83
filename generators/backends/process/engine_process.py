"""The process that an engine is in, as whoever asks it sees it: of one's own, or (`lent_process.py`) of the run."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import IO, Any, Protocol

from engine.errors import FlywheelError
from generators.backends.process.spawn import environment, python, spawn

Pipe = multiprocessing.connection.Connection
CHILD = "generators.backends.process.child"
Spec = dict[str, Any]  # `engine`, `model` and `options`, as `load_engine` takes them


class EngineDied(Exception):
    """The process is gone, or said that it can't go on. The message says how."""


class NoRoom(Exception):
    """There is no place for the process yet. Ask again."""


class EngineProcess(Protocol):
    """A process with an engine that is loaded.

    Attributes:
        pid: its id, where it is on this machine.
        max_model_len: the longest prompt plus completion, in tokens.
    """

    pid: int | None
    max_model_len: int

    def ask(self, *message: Any) -> Any:
        """What it answers (see `child.Loaded`).

        Raises:
            EngineDied: there is no answer, and no process any more. FlywheelError: what it raised in our own words; it has ended, too.
        """
        ...

    def end(self) -> None:
        """End it, whatever it is doing."""
        ...

    def rest(self) -> None:
        """It is needed no longer, and does nothing now."""
        ...


class OwnProcess:
    """A child of this process.

    Args:
        devices: the GPUs it may see, as CUDA_VISIBLE_DEVICES takes them; None: all.
        memory: where new weights come, if any do.

    Raises:
        EngineDied: it ended while it loaded. UserError, StageFailed: what the engine raised.
    """

    def __init__(self, spec: Spec, devices: str | None, memory: IO[bytes] | None = None) -> None:
        ours, theirs = socket.socketpair()
        handles = [theirs.fileno(), *([memory.fileno()] if memory else [])]
        command = python(CHILD, str(handles[0]), str(handles[-1]), str(os.getpid()))
        self._child = spawn(command, pass_fds=handles, env=environment(devices))
        theirs.close()
        self.pid: int | None = self._child.pid
        self._pipe: Pipe[Any, Any] = Pipe(ours.detach())
        self.max_model_len: int = self._exchange(spec)

    def ask(self, *message: Any) -> Any:
        return self._exchange(message)

    def _exchange(self, message: Any) -> Any:
        return exchange(self._pipe, message, lambda: obituary(self._child), self.end)

    def end(self) -> None:
        self._pipe.close()
        self._child.kill()
        self._child.wait()

    def rest(self) -> None:
        self.end()


def exchange(pipe: Pipe[Any, Any], message: Any, obituary: Callable[[], str], end: Callable[[], None]) -> Any:
    """Send one message, wait for its answer.

    Args:
        obituary: how the process ended, if it did. end: makes sure of that.

    Raises:
        EngineDied, FlywheelError: as `EngineProcess.ask` does.
    """
    try:
        pipe.send(message)
        kind, value = pipe.recv()
    except (EOFError, OSError):
        kind, value = "died", obituary()
    if kind == "done":
        return value
    end()
    if isinstance(value, FlywheelError):
        raise value
    raise EngineDied(str(value))


def obituary(child: subprocess.Popen[bytes]) -> str:
    """How a process ended that has closed its connection."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    code = child.returncode
    if code is None:
        return "it closed its connection"
    if code >= 0:
        return f"exit code {code}"
    hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"
