"""What both processes have, known by its name: builtin types, exceptions and modules of the standard library."""

from __future__ import annotations

import operator
import sys
import types
from collections import OrderedDict, defaultdict, deque
from typing import Any, cast

from generators.rules.grading.by_value import Broken

IMMUTABLE: tuple[type, ...] = (tuple, str, int, float, bytes, complex, frozenset)
MUTABLE: tuple[type, ...] = (OrderedDict, defaultdict, list, dict, set, bytearray, deque)
BUILTIN_TYPES: dict[str, type] = {
    one.__name__: one for one in (*IMMUTABLE, *MUTABLE, bool, range, slice, object, type(None))
}  # fmt: skip
# Modules whose exceptions are the same ones in both processes. Not unittest's: one of them has a test skipped.
EXCEPTIONS_OF = sys.stdlib_module_names - {"__main__", "unittest", "bdb", "pdb", "doctest", "_pytest"}


def content(value: Any, base: type) -> Any:
    """What a subclass of a builtin type holds, without what it overrides."""
    if base is tuple or base is frozenset:
        return base(base.__iter__(value))
    if base is bytes:
        return memoryview(value).tobytes()
    if base is complex:
        return complex(complex.real.__get__(value), complex.imag.__get__(value))  # pyright: ignore
    return {str: str.__str__, int: int.__int__, float: float.__float__}[base](value)  # pyright: ignore


def known_class(kind: type) -> list[str] | None:
    """Module and name of a class that both processes have: a builtin type of values, an exception of the standard library."""
    if BUILTIN_TYPES.get(kind.__name__) is kind:
        return ["", kind.__name__]
    module = kind.__module__
    shared = issubclass(kind, BaseException) and module.partition(".")[0] in EXCEPTIONS_OF
    return [module, kind.__name__] if shared and getattr(sys.modules.get(module), kind.__name__, None) is kind else None


def resolved(module: str, name: str, bound: type) -> Any:
    """The class that `known_class` named.

    Args:
        bound: `BaseException` where it has to be an exception.

    Raises:
        Broken: it is none of these.
    """
    if not module:
        return BUILTIN_TYPES[name]
    found = getattr(sys.modules.get(module), name, None)
    if module.partition(".")[0] not in EXCEPTIONS_OF or not isinstance(found, type):
        raise Broken(f"`{module}.{name}` is not known here")
    if not issubclass(found, BaseException) or not issubclass(found, bound if bound is not type else BaseException):
        raise Broken(f"`{module}.{name}` is no exception")
    return cast(Any, found)


def exception(kind: type[BaseException], args: Any, cause: Any) -> BaseException:
    try:
        made = kind(*args)
    except Exception:
        made = kind.__new__(kind)
    set_args(made, args)
    if cause is not None:
        made.__cause__ = cause
    return made


def set_args(error: BaseException, args: Any) -> None:
    if type(args) is not tuple:
        raise Broken("an exception without arguments")
    vars(BaseException)["args"].__set__(error, args)


def known_function(value: Any) -> list[str] | None:
    """Module and name of a function of the standard library."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(value, types.MethodDescriptorType):
        module = value.__objclass__.__module__
    if (
        type(module) is not str
        or type(name) is not str
        or module.partition(".")[0] not in sys.stdlib_module_names
        or module == "__main__"
    ):
        return None
    try:
        return [module, name] if operator.attrgetter(name)(sys.modules[module]) is value else None
    except (AttributeError, KeyError):
        return None


def known_module(name: str, judge: bool) -> Any:
    """The module of the standard library; the judge's own are those that it has, whatever the program says."""
    if name.partition(".")[0] not in sys.stdlib_module_names:
        raise Broken(f"`{name}` is no module of the standard library")
    if name not in sys.modules:
        if judge:
            raise Broken(f"the module `{name}` is not known here")
        __import__(name)
    return sys.modules[name]
