"""Processes that outlive the stages of a run and end with it, so that what one stage has loaded is there for the next.

What they do a room says, by an entry point of the group `flywheel.residents`: a module, run as `python -P -m MODULE SOCKET RUN`
when a stage's process first connects to the socket of that name (`address`). The socket, listening, is the descriptor SOCKET. On its
standard input it is told, a line of JSON each, what the run does: `{"begins": stage or null, "wants": {stage: [artifacts]}}` with a stage
that loads models by itself, and what those want that have not ended; it answers each with a line, once it has let go of what that leaves no use for. At the end of the input it ends.

Stages say which of their inputs are worth it (`Stage.residents`). Where no two stages of a plan want the same there is no such process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from engine.execution import keeper, threads
from engine.plan.plan import Planned
from engine.store.schema import MODELS

GROUP, FOLDER = "flywheel.residents", "FLYWHEEL_RESIDENTS"
STARTS = 3  # of one that ends by itself
GRACE_S = 10


def address(name: str) -> str | None:
    """The socket of the resident process of this name, in a stage's process; None where the run has none."""
    folder = os.environ.get(FOLDER)
    return str(Path(folder, name)) if folder else None


class Residents:
    """Those of one run.

    Args:
        wants: by stage, the artifacts that it would find loaded.
    """

    def __init__(self, wants: dict[str, list[str]]) -> None:
        self._wants, self._lock = wants, threading.Lock()
        self._processes: list[_Resident] = []

    @contextlib.contextmanager
    def during(self, stage: Planned) -> Generator[None]:
        """Within this, the stage is carried out; afterwards it wants nothing more."""
        if not stage.cached and _loads_models(stage):
            self._tell(stage.name)
        try:
            yield
        finally:
            self.over(stage)

    def lent(self, stage: Planned, running: Iterable[str]) -> bool:
        """Whether what the stage would find loaded is another's now: to wait for it is cheaper than to load it once more."""
        wants = set(self._wants.get(stage.name, ()))
        return any(wants.intersection(self._wants.get(other, ())) for other in running)

    def over(self, stage: Planned) -> None:
        """The stage wants nothing more."""
        self._wants.pop(stage.name, None)
        self._tell(None)

    def _tell(self, begins: str | None) -> None:
        with self._lock:
            for process in self._processes:
                process.tell({"begins": begins, "wants": self._wants})

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Within this, they are started when they are wanted."""
        folder = tempfile.mkdtemp(prefix="flywheel-", dir="/tmp" if len(tempfile.gettempdir()) > 60 else None)
        outer, os.environ[FOLDER] = os.environ.get(FOLDER), folder  # nobody else may enter it
        try:
            self._processes = [
                _Resident(entry.value, Path(folder, entry.name), {"begins": None, "wants": self._wants})
                for entry in entry_points(group=GROUP)
            ]
            yield
        finally:
            for process in self._processes:
                process.close()
            os.environ.pop(FOLDER)
            if outer is not None:
                os.environ[FOLDER] = outer
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def residents(plan: Sequence[Planned]) -> Generator[Residents]:
    """Carry out a plan within this, each stage within `during`."""
    wants = {stage.name: found for stage in plan if not stage.cached and (found := _wanted(stage))}
    kept = Residents(wants)
    with contextlib.ExitStack() as stack:
        if any(count > 1 for count in Counter(one for each in wants.values() for one in each).values()):
            stack.enter_context(kept.listening())
        yield kept


def _wanted(stage: Planned) -> list[str]:
    given = [stage.inputs.get(port, []) for port in type(stage.step.config).residents]
    return sorted({source.folder for sources in given for _, source in sources})


def _loads_models(stage: Planned) -> bool:
    """Whether it has weights in a process of its own, and needs the room for them."""
    given = {port: sources for port, sources in stage.inputs.items() if port not in type(stage.step.config).residents}
    kinds = [s.gives if isinstance(s, Planned) else s.kind for sources in given.values() for _, s in sources]
    return any(kind in MODELS for kind in [stage.gives, *kinds])


class _Resident:
    """One process, not started yet, and the thread that starts it and, while it lives, is its parent (prctl(2))."""

    def __init__(self, module: str, place: Path, told: dict[str, object]) -> None:
        self._module, self._told = module, told
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen(64)
        self._closed, self._closing = os.pipe()
        self._thread = threading.Thread(target=self._attend, name=f"resident {place.name}", daemon=True)
        self._thread.start()

    def _attend(self) -> None:
        for _ in range(STARTS):
            if self._closed in select.select([self._listener, self._closed], [], [])[0]:
                return
            with self._lock:
                if self._over:
                    return
                descriptor = self._listener.fileno()
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self._module, str(descriptor), str(os.getpid())],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(descriptor,),
                    env={**threads.environment(), keeper.OUTLIVES: "1"},  # a stage's processes, not the run
                )  # fmt: skip
                self._write(self._told)
            self._process.wait()
        self._listener.close()  # whoever knocks does without

    def tell(self, told: dict[str, object]) -> None:
        """Tell what the run does, and wait until what that leaves without use is gone."""
        with self._lock:
            self._told = told
            if self._process and self._process.poll() is None:
                self._write(told)

    def _write(self, told: dict[str, object]) -> None:
        assert self._process and self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):  # it is gone, and with it what it held
            self._process.stdin.write(json.dumps(told).encode() + b"\n")
            self._process.stdin.flush()
            self._process.stdout.readline()

    def close(self) -> None:
        with self._lock:
            self._over, process = True, self._process
            os.write(self._closing, b".")
            if process and process.stdin:
                process.stdin.close()
        if process:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join()
        self._listener.close()
        os.close(self._closed)
        os.close(self._closing)
