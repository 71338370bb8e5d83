"""The engines that the stages of a run hand on: `python -P -m generators.backends.process.host SOCKET RUN`, a resident of the run.

A stage's process says what it wants and gets the engine's own socket, so that batches do not come through here. One at a time has
it; what a batch leaves behind in an engine changes no token of the next (`vllm/engine.py`). An engine whose stage ended without a word is
ended, and so is one that nobody will want, that waits where another model is wanted, or that takes much of the memory that is left.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from generators.backends.process.engine_process import CHILD, Pipe, obituary
from generators.backends.process.spawn import die_with_parent, python, spawn

SHARE = 0.25  # of the memory that is free: what takes more does not wait beside a stage that has no use for it


@dataclass(eq=False)
class Engine:
    """One engine's process.

    Attributes:
        key: what it has loaded, and how.
        artifact: the model's id.
        socket: our end, which is the stage's while it has the engine.
    """

    key: str
    artifact: str
    process: subprocess.Popen[bytes]
    socket: socket.socket

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and the ranks it has started
        self.process.wait()
        self.socket.close()


@dataclass
class Host:
    """What waits, and what is lent.

    Attributes:
        wants: by stage that has not ended, the models that it asks.
    """

    wants: dict[str, list[str]] = field(default_factory=lambda: {})
    waiting: list[Engine] = field(default_factory=lambda: list[Engine]())
    lent: list[Engine] = field(default_factory=lambda: list[Engine]())
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str, artifact: str, environment: dict[str, str], log: int) -> tuple[Engine, bool]:
        """An engine that waits with just this, or a new one that has yet to load it."""
        with self.lock:
            self._release([one for one in self.waiting if one.key != key or one.process.poll() is not None])
            fresh = not self.waiting
            engine = _started(key, artifact, environment, log) if fresh else self.waiting.pop()
            self.lent.append(engine)
            return engine, fresh

    def give_back(self, engine: Engine) -> None:
        with self.lock:
            self.lent.remove(engine)
            self.waiting.append(engine)
            self._release(self._useless())

    def lose(self, engine: Engine) -> None:
        """Whoever had it said nothing."""
        with self.lock:
            if engine in self.lent:
                self.lent.remove(engine)
                engine.end()

    def hear(self, begins: str | None, wants: dict[str, list[str]]) -> None:
        """What the run does next."""
        with self.lock:
            self.wants = wants
            useless = self._useless()
            if begins is not None and (_has_gpu() or _memory(self.waiting) > SHARE * _free()):
                useless += [one for one in self.waiting if one.artifact not in wants.get(begins, [])]
            self._release(useless)

    def end(self) -> None:
        with self.lock:
            for engine in [*self.waiting, *self.lent]:
                engine.end()

    def _useless(self) -> list[Engine]:
        wanted = {artifact for artifacts in self.wants.values() for artifact in artifacts}
        return [one for one in self.waiting if one.artifact not in wanted]

    def _release(self, engines: list[Engine]) -> None:
        for engine in engines:
            if engine in self.waiting:
                self.waiting.remove(engine)
                engine.end()


def _started(key: str, artifact: str, environment: dict[str, str], log: int) -> Engine:
    ours, theirs = socket.socketpair()
    command = python(CHILD, str(theirs.fileno()), "-1", str(os.getpid()))
    process = spawn(
        command, pass_fds=(theirs.fileno(),), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    theirs.close()
    return Engine(key, artifact, process, ours)


def serve(host: Host, pipe: Pipe[Any, Any]) -> None:
    """Lend one engine over one connection."""
    engine: Engine | None = None
    with contextlib.suppress(EOFError, OSError), pipe:
        key, artifact, environment = pipe.recv()
        log = reduction.recv_handle(pipe)
        engine, fresh = host.take(key, artifact, environment, log)
        os.close(log)
        pipe.send((engine.process.pid, fresh))
        reduction.send_handle(pipe, engine.socket.fileno(), 0)
        while (message := pipe.recv()) != "rest":
            assert message == "obituary"
            pipe.send(obituary(engine.process))
        host.give_back(engine)
        engine = None
        pipe.send("rests")
    if engine:
        host.lose(engine)


def accept(host: Host, listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        pipe: Pipe[Any, Any] = multiprocessing.connection.Connection(connection.detach())
        threading.Thread(target=serve, args=(host, pipe), daemon=True).start()


def main() -> None:
    """Lend engines until the run is over."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal tells all of us; the run decides
    die_with_parent(int(sys.argv[2]))
    os.environ.pop("FLYWHEEL_OUTLIVES", None)
    host, listener = Host(), socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=accept, args=(host, listener), daemon=True).start()
    for line in sys.stdin:
        told = json.loads(line)
        host.hear(told["begins"], told["wants"])
        print(flush=True)
    host.end()
    os._exit(0)


def _has_gpu() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd")))


def _memory(engines: list[Engine]) -> int:
    """Bytes that they have resident."""
    pages = 0
    for engine in engines:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{engine.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free() -> int:
    """Bytes that are left on this machine, or in the container's share of it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # there is no such group, or it has no bound
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


if __name__ == "__main__":
    main()
