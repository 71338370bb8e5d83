"""The graded program's process: it runs the program, and answers what its judge asks of it (`remote_objects.py`).

All of this process is the program's: nothing that it says is believed but for what it is, an answer.
"""

from __future__ import annotations

import builtins
import io
import random
import socket
import sys
import traceback
import types
from typing import Any

from generators.rules.grading.remote_objects import Peer


def run_program(source: str, name: str = "program") -> bool:
    """Run code as the module `__main__`; whether it came to its end. What it raises stands on stderr."""
    module = types.ModuleType("__main__")
    vars(module).update(exit=sys.exit, quit=sys.exit)
    sys.modules["__main__"] = module
    try:
        exec(compile(source, name, "exec", dont_inherit=True), vars(module))
        sys.stdout.flush()
    except SystemExit:
        print("it left before its last line", file=sys.stderr)
        return False
    except BaseException as error:
        traceback.print_exception(error, limit=-20)
        return False
    return True


def answer(channel: socket.socket) -> None:
    """Run the program that the judge sends; then answer."""
    peer = Peer(channel, judge=False)
    source = peer._receive()[2][0]  # pyright: ignore[reportPrivateUsage]
    ready = run_program(source)
    said = _Said()
    _in_touch(peer, said)
    names = list(vars(sys.modules["__main__"])) if ready else None
    peer._send(("=", names, said.take()))  # pyright: ignore[reportPrivateUsage]
    if ready:
        peer.serve()


class _Said:
    """What the program prints while it answers: the tests may want to see it."""

    def __init__(self) -> None:
        self.buffer = io.StringIO()

    def take(self) -> str:
        text = self.buffer.getvalue()
        if text:
            self.buffer.seek(0)
            self.buffer.truncate()
        return text


class _Input(io.TextIOBase):
    """The tests' `sys.stdin`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> str:
        return self._peer.ask("read", "read", *(() if size in (-1, None) else (size,)))

    def readline(self, size: int = -1, /) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._peer.ask("read", "readline")


def _in_touch(peer: Peer, said: _Said) -> None:
    """Once it answers: prints are handed over with each answer, and what it reads are the tests' `input` and `sys.stdin`."""
    sys.stdout.flush()
    sys.stdout, sys.stdin = said.buffer, _Input(peer)
    builtins.input = lambda prompt="", /: peer.ask("input", str(prompt))
    seeded: list[Any] = []

    def before() -> Any:
        return said.take(), random.getstate() if seeded else None

    def after(state: Any) -> None:
        if state is not None:
            seeded[:] = [True]
            random.setstate(state)

    peer.before, peer.after = before, after
