"""The process of an engine: `python -P -m generators.backends.process.child SOCKET MEMORY PARENT`.

It loads one engine, answers batches over the socket, and goes when its parent does.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import sys
import time
import traceback
from multiprocessing import reduction
from typing import Any

from engine.errors import FlywheelError
from engine.stage.executor import peak_rss_mb
from generators.backends.engines import load_engine
from generators.backends.process.shared_weights import read_weights
from generators.backends.process.spawn import die_with_parent

LAST = ("refused", "died")  # answers after which an engine answers nothing more


class Loaded:
    """An engine that answers messages: what is asked by its name, then the arguments.

    Args:
        spec: `engine`, `model` and `options`, as `load_engine` takes them.
        memory: the descriptor of the file in which new weights come.
    """

    def __init__(self, spec: dict[str, Any], memory: int = -1) -> None:
        self._engine: Any = load_engine(spec["engine"], spec["model"], **spec["options"])
        self._memory, self._cpu_s = memory, 0.0
        self.max_model_len: int = self._engine.max_model_len

    def answer(self, kind: str, *arguments: Any) -> tuple[str, Any]:
        """("done", what was asked for), ("refused", an error in our own words) or ("died", what happened)."""
        try:
            match kind:
                case "load_weights":
                    return "done", self._engine.load_weights(read_weights(self._memory, *arguments))
                case "effort":  # since it was asked last
                    before, self._cpu_s = self._cpu_s, time.process_time()
                    return "done", (self._cpu_s - before, peak_rss_mb())
                case _:
                    return "done", list(self._engine.generate(*arguments))
        except FlywheelError as error:
            return "refused", error
        except Exception as error:  # what is left in the engine after this can't be trusted: say so and go
            traceback.print_exc()
            return "died", f"{type(error).__name__}: {error}"


def serve(pipe: Any, memory: int) -> None:
    """Load what the first message names, then take weights and answer batches until the parent is gone."""
    try:
        loaded = Loaded(pipe.recv(), memory)
    except FlywheelError as error:
        pipe.send(("refused", error))
        return
    pipe.send(("done", loaded.max_model_len))
    while True:
        try:
            kind, *arguments = pipe.recv()
        except EOFError:
            return
        if kind == "begin":  # for another stage, whose log comes with it
            log = reduction.recv_handle(pipe)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.close(log)
            pipe.send(("done", loaded.max_model_len))
            continue
        pipe.send(told := loaded.answer(kind, *arguments))
        if told[0] in LAST:
            return


if __name__ == "__main__":
    die_with_parent(int(sys.argv[3]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(multiprocessing.connection.Connection(int(sys.argv[1])), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # engines leave threads behind that would hold the process
