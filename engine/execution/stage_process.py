"""The processes of a run's stages: a keeper each, with a worker below it (`engine.execution.keeper`).

One can be started before its stage begins: it imports what the stage needs, and waits for the word. The word brings the log and what
keeps the lease alive; whoever hears nothing more ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from engine.execution import keeper, stops, threads


class StageProcess:
    """A keeper and its worker; see `Crew.start`."""

    def __init__(self, spec: Path, ahead: Iterable[str], environment: Mapping[str, str], log: IO[bytes] | None) -> None:
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        self._word, self._events = ours, os.fdopen(read)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.execution.keeper", str(os.getpid()), str(spec), *ahead],
                stdin=theirs.fileno(),
                stdout=log or subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env={
                    **threads.environment(),
                    **environment,
                    "FLYWHEEL_EVENTS": str(write),
                    "PYTHONHASHSEED": "0",
                    "TOKENIZERS_PARALLELISM": "true",
                },
            )
        except BaseException:
            ours.close()
            self._events.close()
            raise
        finally:
            theirs.close()
            os.close(write)

    def begin(self, log: IO[bytes], descriptors: Iterable[int]) -> None:
        """Have the stage begin; its spec is written.

        Args:
            log: what it prints goes there.
            descriptors: what must stay open as long as its processes live.
        """
        handles = [log.fileno(), *descriptors]
        with contextlib.suppress(OSError):  # it is gone: whoever waits for it finds out
            socket.send_fds(self._word, [b"w"], handles)
            # The worker reads one. The other stays in the socket, which the keeper has open: so the lease lives as long as the keeper, too.
            socket.send_fds(self._word, [b"k"], handles)

    def events(self) -> Iterator[dict[str, Any]]:
        """What the worker says, until it ends."""
        for line in self._events:
            try:
                yield json.loads(line)
            except ValueError:  # cut short by a kill
                continue

    def end(self) -> None:
        """Have the worker close what is open and end, and all that it started."""
        self.process.terminate()
        try:
            self.process.wait(timeout=keeper.GRACE_S + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self._word.close()
        self._events.close()


class Crew:
    """The stages' processes of a run that are there. Stages side by side have a thread each; a signal comes in another.

    Args:
        environment: what the processes get beside our own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment or {})
        self._there: set[StageProcess] = set()
        self._changing = threading.RLock()
        self._stopped = threading.Event()

    def start(
        self,
        spec: Path,
        ahead: Iterable[str],
        log: IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> StageProcess:
        """Start the processes of a stage, which then wait for `begin`.

        Args:
            spec: the file that will say what to do.
            ahead: what to do before that (`Stage.warm_up`).
            log: where they print to before they begin, if anywhere.
            environment: variables that they get where our own environment has none of that name (`Stage.environment`).

        Raises:
            Stopped: the run was told to stop.
        """
        with self._changing:
            self.pause(0)
            own = {name: value for name, value in (environment or {}).items() if name not in os.environ}
            one = StageProcess(spec, ahead, {**own, **self._environment}, log)
            self._there.add(one)
            return one

    def wait(self, one: StageProcess) -> int:
        """Its exit code, as `subprocess` has it, when it has ended."""
        code = one.process.wait()
        with self._changing:
            self._there.discard(one)
            one.close()
            if code < 0:  # the keeper was killed
                keeper.end_orphans({other.process.pid for other in self._there})
        if -code in stops.SIGNALS or code == stops.exit_code(signal.SIGTERM):
            self.pause(1)  # who stops all processes of a group stops this one, too: that is what is told then
        return code

    def dismiss(self, one: StageProcess) -> None:
        """End one that nobody waits for any more."""
        one.end()
        with self._changing:
            self._there.discard(one)
            one.close()

    def pause(self, seconds: float) -> None:
        """
        Raises:
            Stopped: the run was told to stop.
        """
        if self._stopped.wait(seconds):
            raise stops.Stopped

    def stop(self) -> None:
        """End all of them; no other is started."""
        with self._changing:
            self._stopped.set()
            there = list(self._there)
            for one in there:
                one.process.terminate()
        until = time.monotonic() + keeper.GRACE_S + 5
        for one in there:
            try:
                one.process.wait(timeout=max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
