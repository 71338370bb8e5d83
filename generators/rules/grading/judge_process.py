"""The judge's process: it compiles the tests, has the program run in its own process, and runs the tests against it.

What the tests call is the program's, over there; values come back, and are compared here. The verdict goes where the program has
no way to: through a pipe that only this process and the one that asked have.
"""

from __future__ import annotations

import builtins
import json
import random
import re
import socket
import sys
import traceback
import types
from typing import Any

from generators.rules.grading.remote_objects import Peer, Unanswered

_WORD = re.compile(r"[^\W\d]\w*")


class Names(dict[str, Any]):
    """Global names of the tests: their own, and then the program's, asked for when they are used."""

    def __init__(self, peer: Peer, tests: str) -> None:
        super().__init__()
        self._peer = peer
        self._theirs: set[str] = set()
        self._kept: dict[str, Any] = {}
        self._modules = set(re.findall(r"(?<![\w.])([^\W\d]\w*)\s*\.", tests)) & sys.stdlib_module_names

    def offer(self, names: list[str]) -> None:
        self._theirs = {name for name in names if not name.startswith("__")}

    def __missing__(self, name: str) -> Any:
        if name not in self._theirs:
            raise KeyError(name)
        if name in self._kept:
            return self._kept[name]
        if hasattr(builtins, name) and name not in ("exit", "quit"):
            raise self._peer.give_up(
                f"the program defines `{name}`, which is a builtin that the tests use: name it otherwise"
            )
        if name in ("exit", "quit"):
            return sys.exit
        value = self._peer.ask("global", name)
        if name in self._modules and not isinstance(value, types.ModuleType):
            raise self._peer.give_up(f"the program defines `{name}`, where the tests use the module of this name")
        if self._peer.is_theirs(value) or isinstance(value, types.ModuleType):
            self._kept[name] = value
        return value


def judge(channel: socket.socket, verdict: socket.socket, order: dict[str, Any]) -> None:
    """Grade a program.

    Args:
        channel: to the program's process.
        verdict: where the verdict is sent, one line of JSON: `{"passed": true}`.
        order: `source` of the program and `tests`.
    """
    try:
        code = compile(order["tests"], "tests", "exec", dont_inherit=True)
    except BaseException as error:
        traceback.print_exception(error, limit=0)
        return
    for name in set(_WORD.findall(order["tests"])) & sys.stdlib_module_names & _QUIET:
        __import__(name)
    peer = Peer(channel, judge=True, named=frozenset(_WORD.findall(order["tests"])))
    names = Names(peer, order["tests"])
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    names.update(vars(module), exit=sys.exit, quit=sys.exit)
    _in_touch(peer, "seed" in peer.named)
    failures = _unittest(module, names) if "unittest" in peer.named else []
    passed, why = False, ""
    try:
        offered = peer.ask("run", order["source"])
        if type(offered) is list:
            names.offer([name for name in offered if type(name) is str])
            exec(code, names)
            passed = not failures
            why = "" if passed else f"a test failed: {failures[0]}"
    except SystemExit:
        why = "the tests left before their last line"
    except Unanswered as error:
        peer.trouble = peer.trouble or str(error)
    except BaseException as error:
        traceback.print_exception(error, limit=-20)
        why = f"({'; '.join(peer.notes[:3])})" if peer.notes else ""
    why = peer.trouble or why
    for text in (why,) if why else ():
        print(text, file=sys.stderr)
    sys.stdout.flush()
    verdict.sendall(json.dumps({"passed": passed and not peer.trouble}).encode() + b"\n")


def _unittest(module: types.ModuleType, names: Names) -> list[str]:
    """Have `unittest.main()` find the tests, go on after it, and tell what failed here, whatever is done with the result."""
    import unittest

    failures = list[str]()

    def noted(result: Any, test: Any, *more: Any) -> None:
        failures.append(str(test))

    class Tests(types.ModuleType):
        def __dir__(self) -> list[str]:
            return list(names)

        def __getattr__(self, name: str) -> Any:
            if name in names:
                return dict.__getitem__(names, name)
            raise AttributeError(name)

    module.__class__ = Tests
    for name in ("addFailure", "addError", "addSubTest", "addUnexpectedSuccess"):
        _also(unittest.TestResult, name, noted)
    unittest.main = lambda *args, **named: unittest.TestProgram(*args, **{**named, "exit": False, "argv": ["tests"]})  # pyright: ignore
    return failures


def _also(kind: type, name: str, noted: Any) -> None:
    method = getattr(kind, name)

    def both(self: Any, test: Any, *more: Any) -> Any:
        if name != "addSubTest" or more[-1] is not None:
            noted(self, test)
        return method(self, test, *more)

    setattr(kind, name, both)


# Modules that the program may have imported for the tests: those of before could rely on it.
_QUIET = frozenset({
    "abc", "asyncio", "bisect", "cmath", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "heapq", "inspect", "io", "itertools", "json", "math", "operator", "os", "queue", "random", "re", "statistics",
    "string", "sys", "textwrap", "threading", "time", "types", "typing", "unittest", "warnings",
})  # fmt: skip


def _in_touch(peer: Peer, seeded: bool) -> None:
    """What the program prints is printed here; where tests seed `random`, both have one state of it."""

    def after(told: Any) -> None:
        if type(told) is not tuple or len(told) != 2:
            return
        text, state = told
        if type(text) is str and text:
            sys.stdout.write(text)
        if seeded and state is not None:
            random.setstate(state)

    peer.before = lambda: random.getstate() if seeded else None
    peer.after = after
