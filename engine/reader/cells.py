"""One value of a row as the type its column has: what means the same is taken, what doesn't is said, nothing is guessed."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, cast

import pyarrow as pa

from engine.reader.records import parse_json

SHOWN = 60  # characters of a value in a message


class Unfit(Exception):
    """A row that can't be taken: `reason` for machines, `column` where it is one's fault, and what was found there."""

    def __init__(self, reason: str, column: str | None, found: str) -> None:
        super().__init__(f"`{column}`: {found}" if column else found)
        self.reason, self.column = reason, column


def brief(value: Any) -> str:
    """A value for a message: its type in words of JSON, and how it begins."""
    text = value if isinstance(value, str) else spelled(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"{word(value)} {text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'}"


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message; a file may have a million."""
    shown = list(names)
    more = f" and {len(shown) - 30:,} more" if len(shown) > 30 else ""
    return ", ".join(name if len(name) <= SHOWN else f"{name[: SHOWN - 1]}…" for name in shown[:30]) + more


def word(value: Any) -> str:
    """What JSON calls the type of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float() | Decimal():
            return "the number"
        case str():
            return "the text"
        case list() | tuple():
            return "the list"
        case dict():
            return "the object"
        case _:
            return f"the {type(value).__name__}"


def spelled(value: Any) -> str:
    """Any value that a file can hold as JSON: dates as ISO 8601, bytes that are no text as Base64, not-a-number as null."""
    return json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """Any value that a file can hold, of JSON's types alone."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return value if _encodes(value) else value.encode("utf-8", "backslashreplace").decode()
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return base64.b64encode(value).decode()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
        case list() | tuple() | set():
            return [plain(item) for item in cast(list[Any], value)]
        case _:
            return str(value)


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, or not-a-number, which pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(value: Any, column: str, *, structured: bool = False) -> str | None:
    """A text. Numbers, dates and true or false are spelled; lists and objects as JSON, where a column may hold such.

    Raises:
        Unfit: it is none, or one that UTF-8 can't hold.
    """
    if missing(value):
        return None
    match value:
        case str():
            made = value
        case bool():
            made = "true" if value else "false"
        case bytes():
            try:
                made = value.decode()
            except UnicodeDecodeError as error:
                raise Unfit("invalid_utf8", column, f"byte 0x{value[error.start]:02x} at {error.start}") from None
        case datetime.datetime() | datetime.date() | datetime.time():
            made = value.isoformat()
        case int() | float() | Decimal() | datetime.timedelta():
            made = str(value)
        case list() | tuple() | dict() if structured:
            made = spelled(value)
        case _:
            raise Unfit("bad_type", column, f"expected a text, found {brief(value)}")
    if not _encodes(made):
        raise Unfit("invalid_utf8", column, _unencodable(made))
    if "\0" in made:
        raise Unfit("nul_bytes", column, f"a NUL at character {made.index(chr(0))}")
    return made


def boolean(value: Any, column: str) -> bool | None:
    """True or false; 1 and 0, `true` and `false`, `yes` and `no` are taken for it.

    Raises:
        Unfit: it is something else.
    """
    if missing(value) or value == "":
        return None
    known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "1.0": True, "0.0": False}
    if isinstance(value, bool | int | float | str | Decimal) and (spelt := str(value).strip().lower()) in known:
        return known[spelt]
    raise Unfit("bad_type", column, f"expected true or false, found {brief(value)}")


def cell(value: Any, kind: pa.DataType, column: str) -> Any:
    """A value as this Arrow type, or None where there is nothing.

    Raises:
        Unfit: it can't be one without a loss.
    """
    if missing(value):
        return None
    if pa.types.is_string(kind):
        return text(value, column, structured=True)
    if pa.types.is_boolean(kind):
        return boolean(value, column)
    if pa.types.is_integer(kind):
        return _integer(value, kind, column)
    if pa.types.is_floating(kind):
        return _number(value, column)
    if pa.types.is_list(kind):
        return [cell(item, kind.value_type, column) for item in _list(value, column)]
    raise AssertionError(f"no cell of type {kind}")


def _integer(value: Any, kind: pa.DataType, column: str) -> int | None:
    if value == "":
        return None
    found: Any = None
    if not isinstance(value, bool):
        try:
            found = Decimal(value.strip() if isinstance(value, str) else value)
        except (ArithmeticError, TypeError, ValueError):
            found = None
    if found is None or not found.is_finite() or found != found.to_integral_value():
        raise Unfit("bad_type", column, f"expected a whole number, found {brief(value)}")
    limit = 2 ** (kind.bit_width - 1)
    if not -limit <= found < limit:
        raise Unfit("bad_type", column, f"{str(value)[:SHOWN]} does not fit into {kind.bit_width} bits")
    return int(found)


def _number(value: Any, column: str) -> float | None:
    if value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Unfit("bad_type", column, f"expected a number, found {brief(value)}") from None
    if not math.isfinite(found):
        raise Unfit("bad_type", column, f"expected a finite number, found {brief(value)}")
    return found


def _list(value: Any, column: str) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(cast(list[Any], value))
    if isinstance(value, str):
        try:
            read = parse_json(value)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, list):
            return cast(list[Any], read)
    raise Unfit("bad_type", column, f"expected a list, found {brief(value)}")


def _unencodable(value: str) -> str:
    """Why UTF-8 can't hold a text: its first surrogate, which stands for a byte where a file was not in UTF-8."""
    at, code = next((i, ord(c)) for i, c in enumerate(value) if 0xD800 <= ord(c) <= 0xDFFF)
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} at character {at} is not UTF-8; `encoding` may say what it is, or `encoding: detect`"
    return f"a lone surrogate at character {at}, which UTF-8 can't hold"


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
