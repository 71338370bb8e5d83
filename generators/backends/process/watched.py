"""A token engine in a process of its own, so that its death is an event and not the end.

The child loads the model and answers batches over a socket. If it dies (killed, out of memory, a crash in a kernel) a new one is
started and the batch is asked again, whole, which gives the same tokens. A batch that kills engine after engine is cut
in halves until the rows that do it stand alone; those come back as `Failure("engine_died", ...)`, the rest as answers.

New weights are laid into memory that both processes see; an engine that is started later takes them from there.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engine.errors import FlywheelError, StageFailed
from generators.backends.protocol import Completion, Failure, Sampling, TokenEngine

if TYPE_CHECKING:
    from torch import Tensor

RETRIES = 2  # times a whole batch is asked again before it is cut


class EngineDied(Exception):
    """The child is gone, or said that it can't go on. The message says how."""


class WatchedEngine:
    """A `TokenEngine` in a child process, started when it is first needed and again when it dies.

    Args:
        backend: "vllm", "transformers" or the `module:Class` of another.
        model: as for the engine itself.
        say: told about deaths, in one line each.
        devices: the GPUs it may see, as CUDA_VISIBLE_DEVICES takes them; None: all.
        options: further arguments of the engine.
    """

    def __init__(
        self,
        backend: str,
        model: str,
        say: Callable[[str], None] = lambda text: None,
        devices: str | None = None,
        **options: Any,
    ) -> None:
        self._spec = {"backend": backend, "model": model, "options": options}
        self._say = say
        self._devices = devices
        self._lock = threading.RLock()  # one batch at a time
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: multiprocessing.connection.Connection[Any, Any] | None = None
        self._max_model_len = 0
        self._memory = shared_memory()
        self._placed: list[Placed] = []  # new weights in it, if any
        self._taken = False  # by the engine that runs now
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
            self._placed, self._taken = place(self._memory, named), False
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
            self._taken = False
        if self._placed and not self._taken:
            self._exchange(("load_weights", self._placed))
            self._taken = True

    def _load(self) -> None:
        for attempt in (1, 2):
            ours, theirs = socket.socketpair()
            handles = [theirs.fileno(), self._memory.fileno()]
            self._child = spawn(
                [sys.executable, "-m", "generators.backends.process.watched", *map(str, handles), str(os.getpid())],
                pass_fds=handles,
                env={**alone(os.environ), "PYTHONPATH": import_path(), **seen(self._devices)},
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
        self._placed = []
        self._memory.truncate(0)

    def __enter__(self) -> WatchedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_spawner = ThreadPoolExecutor(1, "spawner")


def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """A child from a thread that lives as long as this process: "die with the parent" means with the thread (prctl(2))."""
    return _spawner.submit(subprocess.Popen[bytes], command, **options).result()


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what torchrun and accelerate leave there: an engine would take itself for one of the training processes."""
    prefixes = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def seen(devices: str | None) -> dict[str, str]:
    return {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}


def import_path() -> str:
    """What the child needs on its path to import this very package."""
    here = str(Path(__file__).resolve().parents[3])
    known = os.environ.get("PYTHONPATH", "")
    return here if not known else known if here in known.split(os.pathsep) else f"{here}{os.pathsep}{known}"


ENGINES = {
    "vllm": "generators.backends.vllm.engine:VllmEngine",
    "transformers": "generators.backends.transformers_engine:TransformersEngine",
}


def load_engine(backend: str, model: str, options: dict[str, Any]) -> TokenEngine:
    """The token engine of this name, or of this `module:Class`, in this process."""
    module, _, name = ENGINES.get(backend, backend).partition(":")
    return getattr(importlib.import_module(module), name)(model, **options)


# -- weights -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies in shared memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def shared_memory() -> IO[bytes]:
    """A file without a name, in memory where the system can do that (unlike /dev/shm, containers don't cap it)."""
    return os.fdopen(os.memfd_create("weights"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


def place(memory: IO[bytes], named: Iterable[tuple[str, Tensor]]) -> list[Placed]:
    """Write tensors into the file, one after the other."""
    import torch

    placed: list[Placed] = []
    memory.seek(0)
    for name, tensor in named:
        offset = -(-memory.tell() // 64) * 64
        memory.seek(offset)
        flat = tensor.detach().cpu().contiguous().flatten()
        memory.write(flat.view(torch.uint8).numpy().data)
        placed.append(Placed(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
    memory.flush()
    return placed


def placed_tensors(memory: int, placed: Sequence[Placed]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they lie there, not copied. They change with the file.

    Args:
        memory: the file's descriptor.
    """
    import torch

    seen = mmap.mmap(memory, 0)
    for one in placed:
        dtype: torch.dtype = getattr(torch, one.dtype)
        count = torch.Size(one.shape).numel()
        flat = (
            torch.frombuffer(seen, dtype=dtype, count=count, offset=one.offset)
            if count
            else torch.empty(0, dtype=dtype)
        )
        yield one.name, flat.view(one.shape)


# -- the child -----------------------------------------------------------------------------------------------------------


def serve(pipe: Any, memory: int) -> None:
    """Load what the first message names, then take weights and answer batches until the parent is gone."""
    spec = pipe.recv()
    engine: Any
    try:
        engine = load_engine(spec["backend"], spec["model"], spec["options"])
    except FlywheelError as error:
        pipe.send(("refused", error))
        return
    pipe.send(("done", engine.max_model_len))
    while True:
        try:
            kind, *given = pipe.recv()
        except EOFError:
            return
        try:
            if kind == "load_weights":
                pipe.send(("done", engine.load_weights(placed_tensors(memory, *given))))
            else:
                pipe.send(("done", list(engine.generate(*given))))
        except FlywheelError as error:
            pipe.send(("refused", error))
            return
        except Exception as error:  # what is left in the engine after this can't be trusted: say so and go
            traceback.print_exc()
            pipe.send(("died", f"{type(error).__name__}: {error}"))
            return


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends, even by SIGKILL (Linux; elsewhere EOF does it)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, int(by))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), by)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[3]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(multiprocessing.connection.Connection(int(sys.argv[1])), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # engines leave threads behind that would hold the process
