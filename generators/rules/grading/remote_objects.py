"""Objects of one process in the other: what a graded program and its judge know of each other that is no value.

An object that crosses becomes a reference there. Calls, attributes and operators on it are messages, and what comes back is a value
(`by_value.py`) or a reference again. Classes are rebuilt with the same names and bases, so that `isinstance` and `except` work;
an object of a class derived from a builtin type brings that type's value along.

What the judge decides by itself, whatever the program says:
- An object of the program is never equal to a value, nor smaller or greater than one: it is not asked.
- Nor is it asked to subtract a value or, unless the tests name its class (in CapWords), for another operation with one.
- Two of its objects that it calls equal have to be unequal to a third that has nothing to do with them.
- What it calls a module is the judge's own.

And what the program may do with an object of the tests that it was given: call it, iterate over it, read and set public attributes
where the tests define its class. Frames, code, globals and modules are not among what can be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import socket
import struct
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, cast

from generators.rules.grading.by_value import LARGEST, Broken, Codec, NoValue
from generators.rules.grading.operators import DUNDERS, operated
from generators.rules.grading.permission import permitted
from generators.rules.grading.references import UNRELATED, Reference, rebuilt
from generators.rules.grading.shared_names import (
    BUILTIN_TYPES,
    IMMUTABLE,
    MUTABLE,
    content,
    exception,
    known_class,
    known_function,
    known_module,
    resolved,
    set_args,
)

_CONTROL = (StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError)


class Unanswered(BaseException):
    """The program can't be asked, or what it would have to be asked can't be said by value. No test catches it."""


class Peer:
    """One end: the program's, which answers, or the judge's, which asks.

    Args:
        named: names that the tests say.
    """

    def __init__(self, channel: socket.socket, judge: bool, named: frozenset[str] = frozenset()) -> None:
        self.judge, self.named = judge, named
        self.trouble = ""
        self.notes: list[str] = []
        self._channel = channel
        self._lock = threading.RLock()
        self._codec = Codec(1 if judge else -1, self._foreign, self._native)
        self._mine: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._references: dict[int, int] = {}  # id of a reference -> the number that the other end knows it by
        self._described: set[int] = set()
        self._offer(object())  # 1: what has nothing to do with any other object
        if judge:
            self._references[id(UNRELATED)] = 1
        self._loop: Any = None
        self.before: Callable[[], Any] = lambda: None
        self.after: Callable[[Any], None] = lambda said: None

    # -- messages ------------------------------------------------------------------------------------------------------

    def ask(self, what: str, *args: Any) -> Any:
        """The other end's answer.

        Raises:
            Unanswered: there is none, and there will be none.
            BaseException: what it raised.
        """
        with self._lock:
            if self.judge and self.trouble:
                raise Unanswered(self.trouble)
            try:
                self._send(("?", what, args, self.before()))
                while True:
                    kind, *said = self._receive()
                    if kind == "?":
                        self._serve(*said)
                        continue
                    if kind == "+":  # containers that changed: the codec has seen to them
                        continue
                    value, told = said
                    self.after(told)
                    break
            except NoValue as error:
                raise self.give_up(f"a value of the tests can't be passed to the program: {error}") from None
            except Broken as error:
                raise self.give_up(f"the program's answer: {error}") from None
            except (OSError, EOFError):
                raise self.give_up("the program ended before it answered") from None
        if kind == "=":
            return value
        if kind == "!" and isinstance(value, BaseException):
            if isinstance(value, _CONTROL) and not (what == "dunder" and args[1] in ("__next__", "__anext__")):
                value = RuntimeError(
                    f"the program raised {type(value).__name__}"
                )  # else a loop or task of the tests would end (PEP 479)
            raise value
        raise self.give_up(f"what the program answers can't be said by value: {value}")

    def serve(self) -> None:
        """Answer until the other end is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, *said = self._receive()
                if kind == "?":
                    self._serve(*said)

    def give_up(self, why: str) -> Unanswered:
        self.trouble = self.trouble or why
        return Unanswered(why)

    def _send(self, message: Any) -> None:
        self._fresh: list[int] = []
        try:
            data = self._codec.dumps(message)
        except NoValue:
            self._described.difference_update(self._fresh)
            raise
        self._channel.sendall(struct.pack("<Q", len(data)) + data)

    def _receive(self) -> tuple[Any, ...]:
        (size,) = struct.unpack("<Q", self._exactly(8))
        if size > LARGEST:
            raise Broken(f"{size >> 20} MiB, more than a message may hold")
        message: Any = self._codec.loads(bytes(self._exactly(size)))
        if type(message) is not tuple or len(cast(tuple[Any, ...], message)) not in (3, 4):
            raise Broken("what came is no message")
        return cast(tuple[Any, ...], message)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            chunk = self._channel.recv(min(size - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def _serve(self, what: Any, args: Any, told: Any) -> None:
        self.after(told)
        answer: tuple[Any, ...]
        try:
            answer = ("=", self._carried_out(what, args))
        except Unanswered:
            raise
        except BaseException as error:
            answer = ("!", error.with_traceback(None))
        also: list[Any] = []
        try:
            target = args[0] if args else None
            owner = (
                getattr(target, "__self__", target)
                if isinstance(target, types.MethodType | types.BuiltinMethodType)
                else target
            )
            if isinstance(owner, MUTABLE) and id(owner) in self._numbers:
                also = [owner]
            if also:
                self._send(("+", None, also))
            self._send((*answer, self.before()))
        except NoValue as error:
            self._send(("~", str(error), self.before()))

    def _carried_out(self, what: Any, args: Any) -> Any:
        if type(what) is not str or type(args) is not tuple:
            raise Broken("what came is no request")
        arguments = cast(tuple[Any, ...], args)
        if self.judge:
            return permitted(what, arguments)
        match (what, *arguments):
            case ("call", target, positional, named):
                return target(*positional, **dict(named))
            case ("get", target, name):
                return getattr(target, name)
            case ("set", target, name, value):
                return setattr(target, name, value)
            case ("del", target, name):
                return delattr(target, name)
            case ("await", target):
                return self._awaited(target)
            case ("dunder", target, name, values):
                return operated(target, name, values)
            case ("global", name):
                return sys.modules["__main__"].__dict__[name]
            case _:
                raise NotImplementedError(what)

    def _awaited(self, target: Any) -> Any:
        async def wait() -> Any:
            return await target

        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(wait())

    # -- what is mine --------------------------------------------------------------------------------------------------

    def _offer(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self._mine) + 1
            self._mine[number], self._numbers[id(value)] = value, number
        return number

    def _foreign(self, value: Any) -> Any:
        if id(value) in self._references:
            return ["p", self._references[id(value)]]
        if isinstance(value, type):
            return self._class_tree(value)
        if isinstance(value, BaseException) and (known := known_class(type(value))):
            cause = value.__cause__
            return [
                "ex",
                known,
                self._codec.encode(value.args),
                self._codec.encode(cause) if cause is not value else None,
            ]
        if isinstance(value, types.ModuleType):
            return ["m", value.__name__]
        if self.judge and (known := known_function(value)):
            return ["ref", *known]
        number, kind = self._offer(value), cast(type, type(value))
        base = next((one for one in (*IMMUTABLE, *MUTABLE) if isinstance(value, one)), None)
        held: Any = None
        if isinstance(value, BaseException):
            held = self._codec.encode(value.args)
        elif base in MUTABLE:
            held = self._codec.container(value, base)
        elif base is not None:
            held = self._codec.encode(content(value, base))
        return ["o", number, self._class_tree(kind), base.__name__ if base else "", held]

    def _class_tree(self, kind: type) -> Any:
        if known := known_class(kind):
            return ["c", *known]
        number = self._offer(kind)
        if number in self._described:
            return ["k", number]
        self._described.add(number)
        self._fresh.append(number)
        own = vars(kind)
        bases = [self._class_tree(base) for base in kind.__bases__ if base is not object]
        names = [name for name in own if not name.startswith("__")]
        return [
            "k",
            number,
            kind.__name__,
            bases,
            names,
            [name for name in own if name in DUNDERS and own[name] is not None],
        ]

    # -- what is theirs ------------------------------------------------------------------------------------------------

    def _native(self, tree: list[Any]) -> Any:
        match tree:
            case ["p", int(number)]:
                return self._mine[number]
            case ["k", int(number), *description]:
                return self._class(number, description)
            case ["c", str(module), str(name)]:
                return resolved(module, name, type)
            case ["ex", [str(module), str(name)], args, cause]:
                return exception(
                    resolved(module, name, BaseException), self._codec.decode(args), self._codec.decode(cause)
                )
            case ["m", str(name)]:
                return known_module(name, self.judge)
            case ["ref", str(module), str(name)] if not self.judge:
                return operator.attrgetter(name)(known_module(module, False))
            case ["o", int(number), list(kind), str(base), held]:
                return self._reference(number, self._codec.decode(kind), base, held)
            case _:
                raise Broken("what came is no value")

    def _hold(self, number: int, value: Any) -> Any:
        self._theirs[number] = value
        self._references[id(value)] = number
        return value

    def _class(self, number: int, description: list[Any]) -> type:
        if number in self._theirs:
            made = self._theirs[number]
            if not isinstance(made, type):
                raise Broken("an object that is a class all at once")
            return made
        name, bases, names, dunders = description
        parents = [
            base for tree in bases if (base := self._codec.decode(tree)) is not object and isinstance(base, type)
        ]
        return self._hold(number, rebuilt(self, name, parents, names, dunders))

    def _reference(self, number: int, kind: Any, base: str, held: Any) -> Any:
        known = self._theirs.get(number)
        if not isinstance(kind, Reference):
            raise Broken("an object without a class")
        if base and issubclass(kind, MUTABLE):
            if known is not None and held[0] == "@":
                return known
            if known is None:
                known = self._hold(number, cast(Any, BUILTIN_TYPES[base]).__new__(kind))
            return self._codec.fill(held, known)
        if known is not None:
            return known
        if issubclass(kind, BaseException):
            made: Any = cast(Any, BaseException).__new__(kind)
            set_args(made, self._codec.decode(held))
        elif base and issubclass(kind, IMMUTABLE):
            value = self._codec.decode(held)
            if type(value) is not BUILTIN_TYPES[base]:
                raise Broken(f"a {base} that is none")
            made = cast(Any, BUILTIN_TYPES[base]).__new__(kind, value)
        else:
            made = cast(Any, object.__new__)(kind)
        return self._hold(number, made)

    def is_theirs(self, value: Any) -> bool:
        return id(value) in self._references
