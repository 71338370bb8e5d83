"""A token engine in a process of its own, so that its death is an event and not the end.

The child loads the model and answers batches over a socket. If it dies (killed, out of memory, a crash in a kernel) a new one is
started and the batch is asked again, whole, which gives the same tokens. A batch that kills engine after engine is cut
in halves until the rows that do it stand alone; those come back as `Failure("engine_died", ...)`, the rest as answers.

New weights are laid into memory that both processes see; an engine that is started later takes them from there.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import FlywheelError, StageFailed
from generators.backends.process.shared_weights import SharedTensor, shared_memory, write_weights
from generators.backends.process.spawn import environment, python, spawn
from generators.backends.protocol import Completion, Failure, Sampling

if TYPE_CHECKING:
    from torch import Tensor

RETRIES = 2  # times a whole batch is asked again before it is cut


class EngineDied(Exception):
    """The child is gone, or said that it can't go on. The message says how."""


class WatchedEngine:
    """A `TokenEngine` in a child process, started when it is first needed and again when it dies.

    Args:
        engine: "vllm", "transformers" or the `module:Class` of another.
        model: as for the engine itself.
        say: told about deaths, in one line each.
        devices: the GPUs it may see, as CUDA_VISIBLE_DEVICES takes them; None: all.
        options: further arguments of the engine.
    """

    def __init__(
        self,
        engine: str,
        model: str,
        say: Callable[[str], None] = lambda text: None,
        devices: str | None = None,
        **options: Any,
    ) -> None:
        self._spec = {"engine": engine, "model": model, "options": options}
        self._say = say
        self._devices = devices
        self._lock = threading.RLock()  # one batch at a time
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: multiprocessing.connection.Connection[Any, Any] | None = None
        self._max_model_len = 0
        self._memory = shared_memory()
        self._weights: list[SharedTensor] = []  # new weights in it, if any
        self._has_weights = False  # the engine that runs now
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child else None

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus completion, in tokens. Starts the engine.

        Raises:
            UserError, StageFailed: as the engine does; StageFailed if it dies while loading, twice.
        """
        if not self._max_model_len:
            with self._lock:
                self._start()
        return self._max_model_len

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place, as `VllmEngine.load_weights` does. They are read one at a time.

        Raises:
            StageFailed: the engine refuses them.
        """
        with self._lock:
            self._weights, self._has_weights = write_weights(self._memory, named), False
            for attempt in (1, 2):
                try:
                    return self._start()
                except EngineDied as error:
                    if attempt == 2:
                        raise StageFailed(f"the engine for {self._spec['model']} can't take weights: {error}") from None

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """As `TokenEngine.generate`; a row that kills the engine comes back as a `Failure`."""
        with self._lock:
            return self._generate(prompts, sampling, seeds)

    def _generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        problem = ""
        for _ in range(1 + RETRIES):
            try:
                return self._ask(prompts, sampling, seeds)
            except EngineDied as error:
                problem = str(error)
                self._say(f"The engine died ({problem}); starting another and asking {len(prompts)} rows again.")
        rows = list(zip(prompts, seeds, strict=True))
        self._probe(rows, sampling)
        return self._bisect(rows, sampling, problem)

    def _probe(self, rows: list[tuple[Sequence[int], int]], sampling: Sampling) -> None:
        """Cutting a batch is for rows that kill: an engine that dies on the first row and on the last dies on all.

        Raises:
            StageFailed: it does.
        """
        problem = ""
        for prompt, seed in (rows[0], rows[-1]):
            try:
                self._ask([prompt], sampling, [seed])
                return
            except EngineDied as error:
                problem = str(error)
        if len(rows) > 1:
            raise StageFailed(f"the engine for {self._spec['model']} dies whatever it is asked: {problem}")

    def _bisect(
        self, rows: list[tuple[Sequence[int], int]], sampling: Sampling, problem: str
    ) -> list[Completion | Failure]:
        """Answer rows that, together, killed the engine."""
        if len(rows) == 1:
            return [Failure("engine_died", f"the engine dies on this row: {problem}")]
        results = list[Completion | Failure]()
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            try:
                results += self._ask([prompt for prompt, _ in half], sampling, [seed for _, seed in half])
            except EngineDied as error:
                results += self._bisect(half, sampling, str(error))
        return results

    def _ask(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """One batch, asked once.

        Raises:
            EngineDied: there is no answer, and no engine any more.
        """
        self._start()
        return self._exchange(("generate", [list(prompt) for prompt in prompts], sampling, list(seeds)))

    def _exchange(self, message: Any) -> Any:
        """Send one message, wait for its answer.

        Raises:
            EngineDied: there will be none.
            FlywheelError: what the child raised in our own words.
        """
        assert self._pipe is not None
        try:
            self._pipe.send(message)
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            kind, value = "died", self._obituary()
        if kind == "done":
            return value
        self._stop()
        if isinstance(value, FlywheelError):
            raise value
        self.deaths += 1
        raise EngineDied(str(value))

    def _start(self) -> None:
        if not self._child:
            self._load()
            self._has_weights = False
        if self._weights and not self._has_weights:
            self._exchange(("load_weights", self._weights))
            self._has_weights = True

    def _load(self) -> None:
        for attempt in (1, 2):
            ours, theirs = socket.socketpair()
            handles = [theirs.fileno(), self._memory.fileno()]
            self._child = spawn(
                python("generators.backends.process.child", *map(str, handles), str(os.getpid())),
                pass_fds=handles,
                env=environment(self._devices),
            )
            theirs.close()
            self._pipe = multiprocessing.connection.Connection(ours.detach())
            try:
                self._max_model_len = self._exchange(self._spec)
                return
            except EngineDied as error:
                if attempt == 2:
                    raise StageFailed(f"the engine for {self._spec['model']} dies while it loads: {error}") from None

    def _obituary(self) -> str:
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(10)
        code = self._child.returncode
        if code is None:
            return "it closed its connection"
        if code >= 0:
            return f"exit code {code}"
        hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"

    def _stop(self) -> None:
        if self._pipe:
            self._pipe.close()
        if self._child:
            self._child.kill()
            self._child.wait()
        self._child = self._pipe = None

    def close(self) -> None:
        """End the child."""
        self._stop()
        self._weights = []
        self._memory.truncate(0)

    def __enter__(self) -> WatchedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
