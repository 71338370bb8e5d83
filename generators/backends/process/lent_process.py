"""An engine's process that the run lends: the same stands ready for the next stage that asks the same model.

It is the host's child (`host.py`). Messages go to it directly; the host is told when it is done with, and ends it if we do.
"""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import time
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from engine.execution.residents import address
from engine.stage.executor import Effort
from generators.backends.process.engine_process import EngineDied, EngineProcess, OwnProcess, Pipe, Spec, exchange
from generators.backends.process.spawn import environment

NAME = "engines"  # of the host, in the table of entry points `flywheel.residents`


class NoHost(Exception):
    """Nobody lends engines here."""


class LentProcess:
    """One of the host's, and ours alone until `rest`.

    Args:
        artifact: the model's id, by which the host knows whether a later stage wants it.
        digest: of what is loaded: under one name it may be another later.
        told: what it has cost this stage, in the end.

    Raises:
        NoHost: there is none, or it is gone. As `OwnProcess` else.
    """

    def __init__(
        self, spec: Spec, devices: str | None, artifact: str, digest: str, told: Callable[[Effort], None]
    ) -> None:
        place = address(NAME)
        if place is None:
            raise NoHost
        self._told, self._since = told, time.monotonic()
        # All that a run starts begins with one environment; what else a process has set in its own is no matter of the engine's.
        key = json.dumps([spec, digest], sort_keys=True, default=str)
        try:
            self._host: Pipe[Any, Any] = multiprocessing.connection.Client(place, "AF_UNIX")
            self._host.send((key, devices, artifact, environment(devices)))
            reduction.send_handle(self._host, 2, 0)  # the stage's log
            pid, fresh = self._host.recv()
            self._pipe: Pipe[Any, Any] = Pipe(reduction.recv_handle(self._host))
        except (EOFError, OSError):
            raise NoHost from None
        self.pid: int | None = pid
        self.max_model_len: int
        if fresh:
            self.max_model_len = self._exchange(spec)
            return
        try:
            self._pipe.send(("begin",))
            reduction.send_handle(self._pipe, 2, 0)
            self.max_model_len = self._pipe.recv()[1]
        except (EOFError, OSError):  # it died while it waited
            how = self._obituary()
            self.end()
            raise EngineDied(how) from None

    def ask(self, *message: Any) -> Any:
        return self._exchange(message)

    def _exchange(self, message: Any) -> Any:
        return exchange(self._pipe, message, self._obituary, self.end)

    def _obituary(self) -> str:
        try:
            self._host.send("obituary")
            return self._host.recv()
        except (EOFError, OSError):
            return "whoever held it is gone"

    def end(self) -> None:
        self._pipe.close()
        self._host.close()  # without a word: the host ends it

    def rest(self) -> None:
        try:
            cpu_s, peak_rss_mb = self.ask("effort")
            self._host.send("rest")
            self._host.recv()
        except (EngineDied, EOFError, OSError):
            return
        wall_s = time.monotonic() - self._since
        self._told(Effort(f"{os.uname().nodename}:{self.pid}", wall_s, cpu_s, peak_rss_mb))
        self.end()


def lender(
    artifact: str, digest: str, devices: str | None, told: Callable[[Effort], None]
) -> Callable[[Spec], EngineProcess] | None:
    """What starts an engine where the run lends them; None where it does not. The arguments are those of `LentProcess`."""

    def start(spec: Spec) -> EngineProcess:
        try:
            return LentProcess(spec, devices, artifact, digest, told)
        except NoHost:
            return OwnProcess(spec, devices)

    return start if address(NAME) else None
