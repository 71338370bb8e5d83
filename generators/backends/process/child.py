"""The process of a watched engine: `python -P -m generators.backends.process.child SOCKET MEMORY PARENT`.

It loads one engine, answers batches over the socket, and goes when its parent does.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import sys
import traceback
from typing import Any

from engine.errors import FlywheelError
from generators.backends.open import open_engine
from generators.backends.process.shared_weights import read_weights
from generators.backends.process.spawn import die_with_parent


def serve(pipe: Any, memory: int) -> None:
    """Load what the first message names, then take weights and answer batches until the parent is gone."""
    spec = pipe.recv()
    try:
        engine: Any = open_engine(spec["engine"], spec["model"], apart=False, **spec["options"])
    except FlywheelError as error:
        pipe.send(("refused", error))
        return
    pipe.send(("done", engine.max_model_len))
    while True:
        try:
            kind, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if kind == "load_weights":
                pipe.send(("done", engine.load_weights(read_weights(memory, *arguments))))
            else:
                pipe.send(("done", list(engine.generate(*arguments))))
        except FlywheelError as error:
            pipe.send(("refused", error))
            return
        except Exception as error:  # what is left in the engine after this can't be trusted: say so and go
            traceback.print_exc()
            pipe.send(("died", f"{type(error).__name__}: {error}"))
            return


if __name__ == "__main__":
    die_with_parent(int(sys.argv[3]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(multiprocessing.connection.Connection(int(sys.argv[1])), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # engines leave threads behind that would hold the process
