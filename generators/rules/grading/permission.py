"""What a program may do with the objects of its tests: with those that they gave it, and no more."""

from __future__ import annotations

import builtins
import io
import sys
import types
from collections.abc import Iterator
from typing import Any, cast

from generators.rules.grading.operators import operated
from generators.rules.grading.references import Reference, Remote

_CALLABLE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)


def permitted(what: str, args: tuple[Any, ...]) -> Any:
    """What the program may do in the judge's process: with objects that the tests gave it, and no more.

    Raises:
        PermissionError: anything else.
    """
    match (what, *args):
        case ("call", target, tuple(positional), tuple(named)) if _may_call(target):
            return target(*cast(tuple[Any, ...], positional), **dict(cast(tuple[Any, ...], named)))
        case ("get", target, str(name)) if _may_read(target, name):
            return getattr(target, name)
        case ("set", target, str(name), value) if _is_of_tests(target) and not name.startswith("_"):
            if callable(getattr(type(target), name, None)):
                raise PermissionError(f"`{name}` is a method of the tests'")
            return setattr(target, name, value)
        case ("dunder", target, str(name), tuple(values)) if _may_operate(target):
            return operated(target, name, cast(tuple[Any, ...], values))
        case ("input", str(prompt)):
            return builtins.input(prompt) if prompt else builtins.input()
        case ("read", str(name), *sizes) if name in ("read", "readline"):
            return getattr(sys.stdin, name)(*sizes)
        case ("get", *_):
            raise AttributeError("there is none that a program may read")
        case _:
            raise PermissionError(f"a program may not ask its tests for this ({what})")


def _is_of_tests(value: Any) -> bool:
    kind = type(value)
    return kind.__module__ == "__main__" and not isinstance(value, type) and not isinstance(value, Remote)


def _is_of_tests_class(value: Any) -> bool:
    return isinstance(value, type) and value.__module__ == "__main__" and not isinstance(value, Reference)


def _may_call(value: Any) -> bool:
    return (
        isinstance(value, _CALLABLE)
        or _is_of_tests(value)
        or _is_of_tests_class(value)
        or _is_mock(value)
        or _is_partial(value)
    )


def _may_read(value: Any, name: str) -> bool:
    if name.startswith("_") and not (name in ("__name__", "__doc__", "__qualname__") and _may_call(value)):
        return False
    if _is_mock(value):
        return not name.startswith(
            ("assert", "call", "mock_", "method_calls", "return_value", "side_effect", "configure", "reset")
        )
    return (
        _is_of_tests(value)
        or _is_of_tests_class(value)
        or isinstance(value, io.StringIO | io.BytesIO)
        or name.startswith("__")
    )


def _may_operate(value: Any) -> bool:
    return _is_of_tests(value) or isinstance(value, io.StringIO | io.BytesIO) or (
        isinstance(value, Iterator) and type(cast(Any, value)).__module__ in ("builtins", "itertools")
    )  # fmt: skip


def _is_mock(value: Any) -> bool:
    mock = sys.modules.get("unittest.mock")
    return mock is not None and isinstance(value, mock.NonCallableMock)


def _is_partial(value: Any) -> bool:
    functools = sys.modules.get("functools")
    return functools is not None and type(value) is functools.partial
