"""Values as bytes between a graded program and its judge: a closed set of types, exactly those, and nothing that runs.

A subclass is no value: a `str` with an `__eq__` of its own never reaches the judge as a `str`. What is no value goes to `foreign`,
which may know it as an object of one side (`remote_objects.py`).

Lists, dicts, sets, bytearrays and deques that cross have a number: one is the same one when it comes back, so that what one
side changed in it the other finds changed, as if it had been passed by reference.
"""

from __future__ import annotations

import builtins
import datetime
import json
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

LARGEST = 64 << 20  # bytes of one message
WATCHED, SMALL, KEPT = (
    32,
    1000,
    20_000,
)  # containers whose changes are looked for: so many, of so many members; remembered at all
_WORD = 1 << 63
_DEEPEST = 15_000  # frames while values are taken apart
_SCALARS = {bool, int, float, str, type(None)}
_VIEWS = {type({}.keys()): "dk", type({}.values()): "dv", type({}.items()): "di"}
_CONTAINERS: dict[type, str] = {
    list: "l", dict: "d", set: "s", bytearray: "ba", deque: "dq", OrderedDict: "od", Counter: "cn", defaultdict: "dd",
}  # fmt: skip
_MADE: dict[str, Callable[[], Any]] = {
    "l": list, "d": dict, "s": set, "ba": bytearray, "od": OrderedDict, "cn": Counter, "dd": defaultdict,
}  # fmt: skip
_FACTORIES: dict[str, Any] = {one.__name__: one for one in (list, dict, set, int, float, str, bool, tuple)}


class NoValue(Exception):
    """What was to be sent can't be said by value."""


class Broken(Exception):
    """What came is not what this codec writes."""


class Codec:
    """One end of a channel.

    Args:
        sign: 1 or -1, the sign of the numbers that this end gives.
        foreign: value -> its tree, for what is no value.
        native: tree -> value, for the trees that `foreign` of the other end made.

    Raises:
        NoValue, Broken: from `dumps` and `loads`.
    """

    def __init__(self, sign: int, foreign: Callable[[Any], Any], native: Callable[[list[Any]], Any]) -> None:
        self._sign, self._foreign, self._native = sign, foreign, native
        self._next = 0
        self._numbers: dict[int, int] = {}
        self._containers: dict[int, Any] = {}
        self._known: dict[int, Any] = {}  # number -> how the other end has it
        self._touched: dict[int, None] = {}  # in the order in which they crossed last
        self._written: set[int] = set()
        self._printed: Any = None  # the container that `_print` is at

    def dumps(self, message: Any) -> bytes:
        """A message of values, and with it what has changed in the containers that are known to both ends."""
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEEPEST))
        try:
            self._written = set()
            tree = self.encode(message)
            changed = list[Any]()
            for number in self._watched():
                if number not in self._written and self._print(number) != self._known.get(number):
                    changed.append(self.encode(self._containers[number]))
            data = json.dumps([tree, changed]).encode()
            if len(data) > LARGEST:
                raise ValueError(f"{len(data) >> 20} MiB")
            self._remember()
        except (RecursionError, ValueError, NoValue) as error:
            for number in self._written:  # nothing of it has crossed
                self._touched.pop(number, None)
                self._known.pop(number, None)
            raise NoValue(f"it is too deep or too long ({type(error).__name__}: {str(error)[:100]})") from None
        finally:
            sys.setrecursionlimit(limit)
        return data

    def loads(self, data: bytes) -> Any:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _DEEPEST))
        try:
            tree, changed = json.loads(data)
            for one in changed:
                self.decode(one)
            value = self.decode(tree)
            self._remember()
            return value
        except NoValue as error:
            raise Broken(str(error)) from None
        except (RecursionError, ValueError, TypeError, KeyError, IndexError, ArithmeticError, AttributeError) as error:
            raise Broken(f"what came is no value ({type(error).__name__})") from None
        finally:
            sys.setrecursionlimit(limit)

    # -- containers ----------------------------------------------------------------------------------------------------

    def _number(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            self._next += 1
            number = self._sign * self._next
            self._hold(number, value)
        return number

    def _hold(self, number: int, value: Any) -> None:
        self._numbers[id(value)], self._containers[number] = number, value
        while len(self._containers) > KEPT:
            oldest = next(iter(self._containers))
            del self._numbers[id(self._containers.pop(oldest))]
            self._known.pop(oldest, None)
            self._touched.pop(oldest, None)

    def _touch(self, number: int) -> None:
        self._touched.pop(number, None)
        self._touched[number] = None

    def _watched(self) -> list[int]:
        return [number for number in self._touched if number in self._containers]

    def _remember(self) -> None:
        """After a message: what the other end has now, of what is looked at. Large containers are, until the next message."""
        watched = list(self._touched)
        for place, number in enumerate(reversed(watched)):
            crossed = number in self._written
            if number not in self._containers or not (
                crossed or (place < WATCHED and len(self._containers[number]) <= SMALL)
            ):
                del self._touched[number]
                self._known.pop(number, None)
            else:
                self._known[number] = self._print(number)
        self._written = set()

    def _print(self, number: int) -> Any:
        """What a container holds, to be compared."""
        value = self._containers[number]
        if type(value) is list and set(map(type, value)) <= _SCALARS:
            return [*value], [*map(type, value)]
        written, self._written, self._printed = self._written, set(), value
        try:
            return json.dumps(self.encode(value))
        finally:
            self._written, self._printed = written, None

    def container(self, value: Any, kind: type) -> Any:
        """A mutable container, or what an object of a subclass of one holds."""
        if self._printed is not None and self._printed is not value and id(value) in self._numbers:
            return ["@", self._numbers[id(value)]]  # it has a print of its own
        number = self._number(value)
        if number in self._written:
            return ["@", number]
        self._written.add(number)
        if type(value) is kind:
            self._touch(number)
        tag = _CONTAINERS[kind]
        if tag == "l":
            return [tag, number, self._list(list.__iter__(value), value)]
        if tag == "s":
            return [tag, number, [*map(self.encode, set.__iter__(value))]]
        if tag == "ba":
            return [tag, number, bytes(value).decode("latin-1")]
        if tag == "dq":
            return [tag, number, [*map(self.encode, deque.__iter__(value))], value.maxlen]
        items = [[self.encode(key), self.encode(one)] for key, one in dict.items(value)]
        if tag == "dd":
            factory = value.default_factory
            known = factory is None or factory is _FACTORIES.get(getattr(factory, "__name__", ""))
            return [tag, number, items, factory.__name__ if known and factory else None]
        return [tag, number, items]

    def _list(self, items: Any, value: Any) -> list[Any]:
        kinds = set(map(type, value))
        if kinds <= _SCALARS and (int not in kinds or (kinds == {int} and min(value) > -_WORD and max(value) < _WORD)):
            return [*items]
        return [*map(self.encode, items)]

    def fill(self, tree: list[Any], value: Any = None) -> Any:
        """The container of this tree, made or brought up to date; `value`: it is this one."""
        tag, number, content = tree[0], tree[1], tree[2]
        if type(number) is not int:
            raise Broken("a container without a number")
        if value is None:
            value = self._containers.get(number)
        if value is None:
            value = deque(maxlen=tree[3]) if tag == "dq" else _MADE[tag]()
        if self._containers.get(number) is not value:
            self._hold(number, value)
        if _CONTAINERS.get(type(value)) is not None:
            self._touch(number)
        self._written.add(number)
        if tag == "l":
            plain = set(map(type, content)) <= _SCALARS
            list.__setitem__(value, slice(None), content if plain else [*map(self.decode, content)])
        elif tag == "s":
            set.clear(value)
            set.update(value, map(self.decode, content))
        elif tag == "ba":
            value[:] = content.encode("latin-1")
        elif tag == "dq":
            held = [*map(self.decode, content)]
            value.clear()
            value.extend(held)
        else:
            if tag == "dd" and tree[3] is not None:
                value.default_factory = _FACTORIES[tree[3]]
            pairs = [(self.decode(key), self.decode(one)) for key, one in content]
            dict.clear(value)
            for key, one in pairs:
                dict.__setitem__(value, key, one)
        return value

    # -- values --------------------------------------------------------------------------------------------------------

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is int:
            return value if -_WORD < value < _WORD else ["i", hex(value)]
        if kind in _CONTAINERS:
            return self.container(value, kind)
        if kind is tuple:
            return ["t", self._list(value, value)]
        if kind is bytes:
            return ["b", value.decode("latin-1")]
        if kind is frozenset:
            return ["fs", [*map(self.encode, value)]]
        if kind is complex:
            return ["c", value.real, value.imag]
        if kind is range or kind is slice:
            return [
                "r" if kind is range else "sl",
                self.encode(value.start),
                self.encode(value.stop),
                self.encode(value.step),
            ]
        if kind is Fraction:
            return ["fr", self.encode(value.numerator), self.encode(value.denominator)]
        if kind is Decimal:
            return ["de", str(value)]
        if kind in (datetime.datetime, datetime.time) and value.tzinfo is not None:
            return ["z", kind.__name__, value.replace(tzinfo=None).isoformat(), value.fold, self.encode(value.tzinfo)]
        if kind in (datetime.date, datetime.datetime, datetime.time):
            return ["dt", kind.__name__, value.isoformat(), getattr(value, "fold", 0)]
        if kind is datetime.timedelta:
            return ["td", value.days, value.seconds, value.microseconds]
        if kind is datetime.timezone:
            return ["tz", self.encode(value.utcoffset(None))]
        if value is Ellipsis or value is NotImplemented:
            return ["one", "Ellipsis" if value is Ellipsis else "NotImplemented"]
        if kind in _VIEWS:
            return [_VIEWS[kind], [*map(self.encode, value)]]
        return self._foreign(value)

    def decode(self, tree: Any) -> Any:
        kind = type(tree)
        if kind is not list:
            if tree is None or kind in _SCALARS:
                return tree
            raise Broken("an object of JSON")
        tag = tree[0]
        if tag in _MADE or tag == "dq":
            return self.fill(tree)
        match tree:
            case ["@", number]:
                return self._containers[number]
            case ["i", str(digits)]:
                return int(digits, 16)
            case ["t", list(items)]:
                return tuple(map(self.decode, items))
            case ["b", str(text)]:
                return text.encode("latin-1")
            case ["fs", list(items)]:
                return frozenset(map(self.decode, items))
            case ["c", float(real), float(imaginary)]:
                return complex(real, imaginary)
            case ["r" | "sl", start, stop, step]:
                return (range if tag == "r" else slice)(self.decode(start), self.decode(stop), self.decode(step))
            case ["fr", over, under]:
                return Fraction(self.decode(over), self.decode(under))
            case ["de", str(text)]:
                return Decimal(text)
            case ["dt", "date" | "datetime" | "time" as name, str(text), int(fold)]:
                made = getattr(datetime, name).fromisoformat(text)
                return made.replace(fold=fold) if fold else made
            case ["z", "datetime" | "time" as name, str(text), int(fold), zone]:
                return getattr(datetime, name).fromisoformat(text).replace(fold=fold, tzinfo=self.decode(zone))
            case ["td", int(days), int(seconds), int(microseconds)]:
                return datetime.timedelta(days, seconds, microseconds)
            case ["tz", offset]:
                return datetime.timezone(self.decode(offset))
            case ["one", "Ellipsis" | "NotImplemented" as name]:
                return getattr(builtins, name)
            case ["dk" | "dv" | "di", list(items)]:
                held = [*map(self.decode, items)]
                return (dict.fromkeys(held).keys() if tag == "dk" else dict(enumerate(held)).values() if tag == "dv"
                        else dict(held).items())  # fmt: skip
            case _:
                return self._native(tree)
