"""References to objects of the other process, and the classes that are rebuilt for them: with the same names and bases, so that
`isinstance` and `except` work."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from generators.rules.grading.operators import ARITHMETIC, DUNDERS, EQUALITIES, NEVER, ORDER
from generators.rules.grading.shared_names import IMMUTABLE, MUTABLE

READABLE_NAMES = frozenset(
    {"__name__", "__qualname__", "__doc__", "__dict__", "__annotations__", "__wrapped__", "__defaults__"}
)
_LOOKS_LIKE: dict[str, type] = {
    "function": types.FunctionType,
    "method": types.MethodType,
    "generator": types.GeneratorType,
    "coroutine": types.CoroutineType,
    "async_generator": types.AsyncGeneratorType,
}


def rebuilt(peer: Any, name: Any, parents: list[type], names: list[Any], dunders: list[Any]) -> type:
    """A class of the other process, as one of this.

    Args:
        peer: whom to ask (`remote_objects.Peer`).
        names, dunders: attributes and operators that the class itself defines.

    Raises:
        TypeError: it can't be.
    """
    space: dict[str, Any] = {
        one: RemoteAttribute(one) for one in names if type(one) is str and not one.startswith("__")
    }
    if any(issubclass(base, MUTABLE) for base in parents):
        space |= {one: RemoteAttribute(one) for base in parents for one in dir(base) if not one.startswith("_")}
        dunders = [*dunders, "__setitem__", "__delitem__"]
    space |= {one: _forwarder(one) for one in dunders if type(one) is str and one in DUNDERS}
    if name in _LOOKS_LIKE:
        space["__class__"] = property(lambda _, kind=_LOOKS_LIKE[name]: kind)
    if name == "coroutine":
        space |= {"send": _send_to_coroutine, "throw": _throw_into_coroutine, "close": lambda _: None}
    space |= {one: RemoteAttribute(one) for one in ("__doc__", "__annotations__")}
    space |= {"__slots__": (), "__module__": "__main__", "__peer__": peer}
    title = name if type(name) is str and name.isidentifier() else "object"
    bases = tuple(parents) if any(issubclass(base, Remote) for base in parents) else (Remote, *parents)
    try:
        return Reference.made(title, bases, space)
    except TypeError:  # bases that don't fit together here
        return Reference.made(title, (Remote,), space)


class Reference(type):
    """The class of rebuilt classes."""

    __peer__: Any

    @classmethod
    def made(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> type:
        return type.__new__(cls, name, bases, space)

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **named: Any) -> Reference:
        if bases:
            raise bases[0].__peer__.give_up(f"the tests derive `{name}` from a class of the program's")  # pyright: ignore
        return type.__new__(cls, name, bases, space)

    def __call__(cls, *args: Any, **named: Any) -> Any:
        return cls.__peer__.ask("call", cls, args, tuple(named.items()))

    def __getattr__(cls, name: str) -> Any:
        if name == "__peer__" or (name.startswith("__") and name not in READABLE_NAMES):
            raise AttributeError(name)
        return cls.__peer__.ask("get", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls.__peer__.ask("set", cls, name, value)

    def __getitem__(cls, key: Any) -> Any:
        return cls.__peer__.ask("dunder", cls, "__getitem__", (key,))

    def __iter__(cls) -> Iterator[Any]:
        return cls.__peer__.ask("dunder", cls, "__iter__", ())

    def __len__(cls) -> int:
        return cls.__peer__.ask("dunder", cls, "__len__", ())

    def __bool__(cls) -> bool:
        return True

    def __contains__(cls, value: Any) -> bool:
        return any(one is value or one == value for one in cls)


class Remote(metaclass=Reference):
    """A reference to an object of the other process."""

    __slots__ = ()
    __peer__: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in READABLE_NAMES:
            raise AttributeError(name)
        return self.__peer__.ask("get", self, name)

    @property
    def __dict__(self) -> Any:  # pyright: ignore
        return self.__peer__.ask("get", self, "__dict__")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__") or name == "args":  # what is said of exceptions on their way
            object.__setattr__(self, name, value)
        else:
            self.__peer__.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__peer__.ask("del", self, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self.__peer__.give_up(f"the tests copy or pickle an object of the program's ({type(self).__name__})")


class RemoteAttribute:
    """An attribute that the other process has, of an object or of its class."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, value: Any, owner: Any = None) -> Any:
        return (owner if value is None else value).__peer__.ask("get", owner if value is None else value, self._name)

    def __set__(self, value: Any, new: Any) -> None:
        value.__peer__.ask("set", value, self._name, new)

    def __delete__(self, value: Any) -> None:
        value.__peer__.ask("del", value, self._name)


def _forwarder(name: str) -> Callable[..., Any]:
    """The method `__add__` (and so on) of a reference."""
    weighed = name in ARITHMETIC or name in ORDER or name in EQUALITIES or name == "__contains__"

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        peer: Any = self.__peer__
        if name == "__call__":
            return peer.ask("call", self, args, tuple(named.items()))
        if peer.judge and weighed and not peer.is_theirs(args[0]):
            return _with_value(peer, self, name, *args)
        answer = peer.ask("dunder", self, name, args)
        if not peer.judge:
            return answer
        if name == "__eq__" and answer is True and self is not args[0]:
            return peer.ask("dunder", self, name, (UNRELATED,)) is not True
        return answer

    def awaited(self: Any) -> Iterator[Any]:
        return self.__peer__.ask("await", self)
        yield

    def hashed(self: Any) -> int:
        content = _builtin(type(self))
        return (
            content.__hash__(self)  # pyright: ignore[reportCallIssue]
            if content and content in IMMUTABLE
            else self.__peer__.ask("dunder", self, "__hash__", ())
        )

    forward.__name__ = name
    return {"__await__": awaited, "__hash__": hashed}.get(name, forward)


class _Unrelated:
    """Stands for the object that is number 1 of the other end."""


UNRELATED = _Unrelated()


def _with_value(peer: Any, reference: Any, name: str, value: Any, *more: Any) -> Any:
    """An operation of an object of the program with a value of the tests: decided here."""
    kind = type(reference)
    content = _builtin(kind)
    own = getattr(content, name, None) if content else None
    if own is not None and content is not None and name in vars(content):
        return own(reference, value, *more)
    if name in EQUALITIES:
        note = f"an object of the program ({kind.__name__}) was compared with a value, and is equal to none"
        if value is not None and note not in peer.notes:
            peer.notes.append(note)
        return NotImplemented
    if name not in NEVER and kind.__name__ in peer.named and kind.__name__[:1].isupper():
        return peer.ask("dunder", reference, name, (value, *more))
    if name == "__contains__":
        return any(one is value or one == value for one in reference)
    raise peer.give_up(
        f"an object of the program ({kind.__name__}) would have to say itself what `{name}` with a value gives"
    )


def _builtin(kind: type) -> type | None:
    """The builtin type whose value an object of a rebuilt class brings along."""
    return next((one for one in (*IMMUTABLE, *MUTABLE) if issubclass(kind, one)), None)


def _send_to_coroutine(self: Any, value: Any) -> Any:
    raise StopIteration(self.__peer__.ask("await", self))


def _throw_into_coroutine(self: Any, *raised: Any) -> Any:
    raise raised[0]
