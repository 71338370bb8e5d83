"""A token engine in a process of its own, so that its death is an event and not the end.

The child loads the model and answers batches over a socket. If it dies (killed, out of memory, a crash in a kernel) a new one is
started and the batch is asked again, whole, which gives the same tokens. A batch that kills engine after engine is cut
in halves until the rows that do it stand alone; those come back as `Failure("engine_died", ...)`, the rest as answers.

New weights are laid into memory that both processes see; an engine that is started later takes them from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import StageFailed
from generators.backends.process.engine_process import EngineDied, EngineProcess, OwnProcess, Spec
from generators.backends.process.shared_weights import SharedTensor, shared_memory, write_weights
from generators.backends.protocol import Completion, Failure, Sampling

if TYPE_CHECKING:
    from torch import Tensor

RETRIES = 2  # times a whole batch is asked again before it is cut


class WatchedEngine:
    """A `TokenEngine` in a child process, started when it is first needed and again when it dies.

    Args:
        engine: "vllm", "transformers" or the `module:Class` of another.
        model: as for the engine itself.
        say: told about deaths, in one line each.
        devices: the GPUs it may see, as CUDA_VISIBLE_DEVICES takes them; None: all.
        elsewhere: starts its process where it is no child of this one; weights can't be replaced there.
        options: further arguments of the engine.
    """

    def __init__(
        self,
        engine: str,
        model: str,
        say: Callable[[str], None] = lambda text: None,
        devices: str | None = None,
        elsewhere: Callable[[Spec], EngineProcess] | None = None,
        **options: Any,
    ) -> None:
        self._spec: Spec = {"engine": engine, "model": model, "options": options}
        self._say = say
        self._devices = devices
        self._elsewhere = elsewhere
        self._lock = threading.RLock()  # one batch at a time
        self._process: EngineProcess | None = None
        self._max_model_len = 0
        self._memory = shared_memory()
        self._weights: list[SharedTensor] = []  # new weights in it, if any
        self._has_weights = False  # the engine that runs now
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one on this machine."""
        return self._process.pid if self._process else None

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus completion, in tokens. Starts the engine.

        Raises:
            UserError, StageFailed: as the engine does; StageFailed if it dies while loading, twice.
        """
        if longest := self._max_model_len:
            return longest
        with self._lock:
            self._start()
            return self._max_model_len

    def load_weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place, as `VllmEngine.load_weights` does. They are read one at a time.

        Raises:
            StageFailed: the engine refuses them.
        """
        if self._elsewhere:
            raise StageFailed(f"the engine for {self._spec['model']} is another's, too: its weights stay as they are.")
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
        return self._asked("generate", [list(prompt) for prompt in prompts], sampling, list(seeds))

    def _asked(self, *message: Any) -> Any:
        assert self._process is not None
        try:
            return self._process.ask(*message)
        except Exception as error:  # there is no process any more
            self._process, self._max_model_len = None, 0
            self.deaths += isinstance(error, EngineDied)
            raise

    def _start(self) -> None:
        if not self._process:
            self._process = self._load()
            self._max_model_len, self._has_weights = self._process.max_model_len, False
        if self._weights and not self._has_weights:
            self._asked("load_weights", self._weights)
            self._has_weights = True

    def _load(self) -> EngineProcess:
        problem = ""
        for _ in (1, 2):
            try:
                if self._elsewhere:
                    return self._elsewhere(self._spec)
                return OwnProcess(self._spec, self._devices, self._memory)
            except EngineDied as error:
                self.deaths += 1
                problem = str(error)
        raise StageFailed(f"the engine for {self._spec['model']} dies while it loads: {problem}")

    def close(self) -> None:
        """End the process, or leave it to whoever lent it."""
        if self._process:
            self._process.rest()
        self._process = None
        self._weights = []
        self._memory.truncate(0)

    def __enter__(self) -> WatchedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
