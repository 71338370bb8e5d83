"""Operators of objects that a reference hands on to the process that has the object."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

_BINARY = "add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift".split()  # noqa: SIM905
ARITHMETIC = {f"__{way}{name}__" for name in _BINARY for way in ("", "r", "i") if (way, name) != ("i", "divmod")}
ORDER = {"__lt__", "__le__", "__gt__", "__ge__"}
EQUALITIES = {"__eq__", "__ne__"}
NEVER = {*ORDER, "__sub__", "__rsub__", "__isub__"}  # with a value, whatever the tests name
OPERATIONS: dict[str, Callable[..., Any]] = {
    "__call__": lambda obj, *args, **named: obj(*args, **named),
    "__len__": len, "__iter__": iter, "__next__": next, "__reversed__": reversed, "__contains__": operator.contains,
    "__getitem__": operator.getitem, "__setitem__": operator.setitem, "__delitem__": operator.delitem, "__bool__": bool,
    "__str__": str, "__repr__": repr, "__format__": format, "__hash__": hash, "__abs__": abs, "__neg__": operator.neg,
    "__pos__": operator.pos, "__invert__": operator.invert, "__int__": int, "__float__": float, "__complex__": complex,
    "__index__": operator.index, "__round__": round, "__bytes__": bytes,
}  # fmt: skip
DUNDERS = frozenset({
    *OPERATIONS, *ARITHMETIC, *ORDER, *EQUALITIES, "__trunc__", "__floor__", "__ceil__", "__enter__", "__exit__", "__await__",
    "__aiter__", "__anext__", "__aenter__", "__aexit__", "__missing__",
})  # fmt: skip


def operated(target: Any, name: str, values: tuple[Any, ...]) -> Any:
    """What the operation gives; NotImplemented where the object's class says so.

    Raises:
        NotImplementedError: it is none that is handed on.
    """
    if name not in DUNDERS:
        raise NotImplementedError(name)
    if name in OPERATIONS:
        return OPERATIONS[name](target, *values)
    return getattr(type(target), name)(target, *values)
