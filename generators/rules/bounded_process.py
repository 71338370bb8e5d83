"""A process for what may take for ever: asked a line at a time, ended by a timer of its own CPU time, and started again."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Any

WALL_S = 60.0  # for a process that uses no CPU at all


class BoundedProcess:
    """The process of a module (`bounded_script.py`), started when it is first asked and again after it ran out of time.

    One for all threads of a process, which take turns; a fork starts its own.
    """

    def __init__(self, module: str, cpu_s: float) -> None:
        self.module, self.cpu_s = module, cpu_s
        self.forget()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self.forget)

    def ask(self, request: Any) -> Any:
        """The answer. None, where that takes more than `cpu_s` or its memory.

        Raises:
            RuntimeError: the process doesn't start, or something ends it that is no limit.
        """
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            answer = self._line(process)
            if answer:
                return json.loads(answer)
            code = self._end()
            if code in (-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGABRT):  # time, the C stack, memory
                return None
            raise RuntimeError(f"the process of {self.module} ended with {code} at {str(request)[:200]}.")

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module, str(self.cpu_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        if self._line(process) != b"ready\n":
            raise RuntimeError(f"the process of {self.module} did not start: it ended with {self._end()}.")
        return process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout
        if not select.select([process.stdout], [], [], WALL_S)[0]:
            process.send_signal(signal.SIGPROF)
        return process.stdout.readline()

    def _end(self) -> int:
        """Let go of the process; its exit code."""
        process, self._process = self._process, None
        assert process and process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            if self._process:
                self._end()

    def forget(self) -> None:
        """In a fork: the process is the parent's."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
