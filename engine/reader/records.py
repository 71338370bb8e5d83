"""Files that hold rows (JSON, JSON lines, CSV, Parquet, Arrow) as records, one at a time; what can't be read is said by line."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from engine.reader.apart import MEMORY, Unreadable, apart
from engine.reader.columnar import sound
from engine.reader.encodings import DETECT, START, looks_like, opened
from engine.reader.encodings import decode as decoded
from engine.reader.sources import MOST, Range, SourceFile, TooLarge

EXCERPT = 1000  # characters of a rejected row that are kept; the whole is in its source file
LONG = 8 << 20  # characters of JSON that may hold anything
MOST_LISTS = 2_000_000  # lists and objects in more than that: each takes a hundred bytes or two
WHOLE = 32 << 20  # bytes of a JSON array that is parsed at once; of a larger one, a row at a time


SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Record:
    """One row as its file has it: where it starts (byte, or row for CSV, JSON arrays, Parquet and Arrow), and what people call
    that place (`line 3`, `row 3`, from 1).
    """

    row: dict[str, Any]
    offset: int
    place: str


@dataclass(frozen=True)
class Bad:
    """What could not be read, and why."""

    reason: str
    detail: str
    offset: int
    excerpt: str | None = None
    place: str = ""

    def __post_init__(self) -> None:
        """Whatever a file has, names of columns among it, is text here."""
        for name in ("detail", "excerpt", "place"):
            told = getattr(self, name)
            if told is not None and not told.isascii():
                object.__setattr__(self, name, told.encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True)
class RecordOptions:
    """How records are read.

    Attributes:
        max_bytes: of one text in UTF-8.
        encoding: of text whose first bytes don't prove another; `detect` for UTF-8 or else what it looks like.
        max_file_bytes: of a file that is held whole, or that is a small one unpacked.
        columns: what every row has to have; a file of columns without one is one `Bad`, and not one a row.
        missing: tells that a column is not among these.
    """

    max_bytes: int = 20_000_000
    encoding: str = "utf-8"
    max_file_bytes: int = MOST
    missing: Callable[[Iterable[str], int], Bad | None] = lambda columns, offset: None


def too_long(size: int, limit: int, offset: int, text: str, place: str = "") -> Bad:
    told = f"{size} bytes, more than `max_bytes` {limit}"
    return Bad("too_long", told, offset, text[:EXCERPT].replace("\0", ""), place)


def decode(data: bytes, offset: int, encoding: str = "utf-8", place: str = "") -> str | Bad:
    """The text of bytes, or why they are none."""
    try:
        return decoded(data, encoding)
    except UnicodeDecodeError as error:
        shown = data[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]
        detail = f"byte 0x{data[error.start]:02x} at {error.start}: {error.reason}"
        reason = "invalid_utf8" if encoding in ("utf-8", DETECT) else "bad_encoding"
        return Bad(reason, detail, offset, shown, place)


def limited(file: SourceFile, limit: int, setting: str = "max_bytes") -> bytes | Bad:
    """The bytes of a file, unless there are more than `limit`, as `setting` says."""
    with file.open(limit + (1 << 20)) as handle:
        blocks: list[bytes] = []
        size = 0
        while size <= limit and (block := handle.read(min(1 << 22, limit + 1 - size))):
            blocks.append(bytes(block))
            size += len(block)
    data = b"".join(blocks)
    if size <= limit:
        return data
    told = f"{file.size}" if file.size > limit else f"at least {size}"
    shown = data[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT].replace("\0", "")
    return Bad("too_long", f"{told} bytes, more than `{setting}` {limit}", 0, shown)


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key `{next(key for key in keys if keys.count(key) > 1)}` stands twice in one object")
    return made


DECODER = json.JSONDecoder(parse_constant=_not_json, object_pairs_hook=_object)


def parse_json(text: str) -> Any:
    """JSON as its standard has it: no NaN, no key twice; and no more of it than some GB of memory hold.

    Raises:
        ValueError: it is none. RecursionError: it is nested too deep.
    """
    if len(text) > LONG and (text.count("[") + text.count("{") > MOST_LISTS or text.count(",") > 10 * MOST_LISTS):
        raise ValueError(f"more than {MOST_LISTS:,} lists and objects, or ten times as many values, stand in one")
    return json.loads(text, parse_constant=_not_json, object_pairs_hook=_object)


UNREADABLE = (Unreadable, OSError, EOFError, UnicodeError, lzma.LZMAError, zlib.error, pa.ArrowException)


def records(file: SourceFile, form: str, limits: RecordOptions, within: Range | None = None) -> Iterator[Record | Bad]:
    """The records of one file of rows. What can't be opened or read is one `Bad`.

    Args:
        form: one of `ROWS`.
        within: read no more than this (`engine.reader.ranges`).
    """
    at = within.first if within else 0
    try:
        for item in RANGED[form](file, limits, within) if within else FORMS[form](file, limits):
            at = item.offset
            yield item
    except UNREADABLE as error:
        yield unreadable(error, at)


def unreadable(error: BaseException, at: int) -> Bad:
    """The rest of a file after this offset."""
    told = str(error) if isinstance(error, Unreadable | TooLarge) else f"{type(error).__name__}: {error}"
    return Bad("unreadable", f"after offset {at}: {told}", at)


def _jsonl(file: SourceFile, limits: RecordOptions) -> Iterator[Record | Bad]:
    """One JSON object a line; blank lines are nothing."""
    if is_array(file, limits):
        yield from _json(file, limits)
        return
    with file.open(limits.max_file_bytes) as raw:
        yield from _objects(*opened(raw, limits.encoding), limits)


def _jsonl_within(file: SourceFile, limits: RecordOptions, within: Range) -> Iterator[Record | Bad]:
    with file.open(limits.max_file_bytes) as raw:
        yield from _objects(_Stretch(raw, within.begin, within.end), limits.encoding, limits, within.begin)


class _Stretch:
    """Some bytes of a file."""

    def __init__(self, raw: Any, begin: int, end: int) -> None:
        raw.seek(begin)
        self.raw, self.left = raw, end - begin

    def read(self, size: int) -> bytes:
        data: bytes = self.raw.read(min(size, self.left))
        self.left -= len(data)
        return data


def _objects(utf8: Any, encoding: str, limits: RecordOptions, begin: int = 0) -> Iterator[Record | Bad]:
    """
    Args:
        begin: where in its file the first line is.
    """
    limit = 6 * limits.max_bytes + (1 << 20)  # JSON may spell one byte in six; the rest is room for other columns
    for number, (at, size, data) in enumerate(lines(utf8, limit), 1):
        offset, place = begin + at, f"byte {begin + at}" if begin else f"line {number}"
        if not data.strip():
            continue
        if size > len(data):
            yield too_long(size, limits.max_bytes, offset, data[: 4 * EXCERPT].decode("utf-8", "replace"), place)
            continue
        line = decode(data, offset, encoding, place)
        if isinstance(line, Bad):
            yield line
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            yield Bad("bad_json", str(error), offset, line[:EXCERPT], place)
            continue
        yield _record(row, offset, place, line)


def is_array(file: SourceFile, limits: RecordOptions) -> bool:
    """Whether a file called JSON lines is one array of objects: it begins with `[`, and then with `{` or on another line."""
    with file.open(limits.max_file_bytes) as raw:
        start, _ = opened(raw, limits.encoding)
        return re.match(rb"\s*\[\s*(\{|\n)", bytes(start.read(1 << 10))) is not None


def _record(row: Any, offset: int, place: str, text: str) -> Record | Bad:
    if not isinstance(row, dict):
        return Bad("bad_json", f"expected an object, found {type(row).__name__}", offset, text[:EXCERPT], place)
    return Record(cast(dict[str, Any], row), offset, place)


def _json(file: SourceFile, limits: RecordOptions) -> Iterator[Record | Bad]:
    """JSON: an array of objects (the offset is the place in it), one object, or, as many call it, an object a line."""
    with file.open(limits.max_file_bytes) as raw:
        start, encoding = opened(raw, limits.encoding)
        first = bytes(start.read(START)).split(b"\n", 1)
    with contextlib.suppress(ValueError, RecursionError):
        if len(first) == 2 and isinstance(
            json.loads(first[0].decode("utf-8" if encoding == DETECT else encoding)), dict
        ):
            yield from _jsonl(file, limits)
            return
    data = limited(file, WHOLE, "max_file_bytes")
    if isinstance(data, Bad):
        if re.match(rb"\s*\[", first[0] if first[0].strip() else first[-1]):
            yield from _array(file, limits)
            return
        data = limited(file, limits.max_file_bytes, "max_file_bytes")
    text = data if isinstance(data, Bad) else decode(data, 0, limits.encoding)
    if isinstance(text, Bad):
        yield text
        return
    try:
        rows = parse_json(text)
    except (ValueError, RecursionError) as error:
        yield Bad("bad_json", str(error), 0, text[:EXCERPT])
        return
    if isinstance(rows, dict) and (held := _held(cast(dict[str, Any], rows))) is not None:
        rows = held
    for index, row in enumerate(cast(list[Any], rows) if isinstance(rows, list) else [rows]):
        yield _record(row, index, f"row {index + 1}", str(row))


def _array(file: SourceFile, limits: RecordOptions) -> Iterator[Record | Bad]:
    """A large array, a row at a time; after a fault in it, nothing more can be told apart."""
    limit = 6 * limits.max_bytes + (1 << 20)  # as of a line
    with file.open(limits.max_file_bytes) as raw:
        utf8, encoding = opened(raw, limits.encoding)
        stream = io.TextIOWrapper(utf8, "utf-8" if encoding == DETECT else encoding)
        held, at, index, ended = stream.read(1 << 20), 0, -1, False
        while True:
            at = SPACE.match(held, at).end()  # pyright: ignore[reportOptionalMemberAccess]  # it matches nothing, too
            mark = held[at : at + 1]
            after = mark and (index < 0 or mark == "," or mark == "]")
            if after and mark == "]" and index >= 0:
                return
            if after:
                index += 1
                begin = SPACE.match(held, at + 1).end()  # pyright: ignore[reportOptionalMemberAccess]
                if index == 0 and held[begin : begin + 1] == "]":
                    return
                try:
                    row, end = DECODER.raw_decode(held, begin)
                    if ended or SPACE.match(held, end).end() < len(held):  # pyright: ignore[reportOptionalMemberAccess]
                        yield _record(row, index, f"row {index + 1}", held[begin:end])
                        at = end
                        continue
                    fault = None
                except (ValueError, RecursionError) as error:
                    fault = getattr(error, "msg", str(error))
                index -= 1
            else:
                fault = "expected `,` or `]` after a row"
            if (mark and not after) or ended or len(held) - at > limit:
                told = f"row {index + 2}: {fault or 'the array does not end'}; nothing after it can be read"
                yield Bad("bad_json", told, index + 1, held[at : at + EXCERPT], f"row {index + 2}")
                return
            block = stream.read(max(1 << 20, len(held) - at))  # a row that is not all there yet
            held, at, ended = held[at:] + block, 0, not block


def _held(outer: dict[str, Any]) -> list[Any] | None:
    """The rows of an object that holds nothing but a list of objects, unless these are the messages of one conversation."""
    (held,) = outer.values() if len(outer) == 1 else (None,)
    rows = cast(list[Any], held) if isinstance(held, list) else []
    speaks = any(isinstance(row, dict) and {"role", "from"} & row.keys() for row in rows)
    return rows if rows and not speaks and all(isinstance(row, dict) for row in rows) else None


def lines(raw: Any, limit: int, block_size: int = 1 << 20) -> Iterator[tuple[int, int, bytes]]:
    """(offset, size, bytes) of every line, without its end; of a line longer than `limit` only the first bytes."""
    offset = size = 0
    held: list[bytes] = []
    kept = 0
    read = getattr(raw, "read1", raw.read)  # what can be unpacked of a file that is cut off, and not nothing
    while block := read(block_size):
        pieces = bytes(block).split(b"\n")
        for index, piece in enumerate(pieces):
            size += len(piece)
            if kept <= limit:
                held.append(piece)
                kept += len(piece)
            if index < len(pieces) - 1:
                data = b"".join(held)
                yield offset, size, data if size <= limit else data[: 4 * EXCERPT]
                offset, size, kept = offset + size + 1, 0, 0
                held.clear()
    if size:
        data = b"".join(held)
        yield offset, size, data if size <= limit else data[: 4 * EXCERPT]


def _csv(file: SourceFile, limits: RecordOptions) -> Iterator[Record | Bad]:
    """CSV with a header (tabs for .tsv). A header without a comma is split by `;`, a tab or `|`, where it has one of these."""
    csv.field_size_limit(limits.max_bytes + (1 << 16))
    with file.open(limits.max_file_bytes) as raw:
        # Bytes that are not UTF-8 come through as lone surrogates, so that one bad row does not hide the others.
        buffered, encoding = opened(raw, limits.encoding)
        if encoding == DETECT:
            start = buffered.peek(START)
            whole = start[: start.rfind(b"\n") + 1]
            encoding = "utf-8" if isinstance(decode(whole, 0), str) else looks_like(start)
        stream = io.TextIOWrapper(buffered, encoding, errors="surrogateescape", newline="")
        top = stream.readline()
        stated = re.fullmatch(r"sep=(.)\r?\n?", top)  # Excel's way to say it, in a line of its own
        if stated:
            top = stream.readline()
        delimiter = (
            stated[1]
            if stated
            else "\t"
            if file.suffix == ".tsv"
            else next((mark for mark in ",;\t|" if mark in top), ",")
        )
        # Strict, or a quote that is never closed would swallow all rows after it without a word.
        reader = csv.reader(itertools.chain([top] if top else [], stream), delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            yield Bad("bad_csv", f"the header line: {error}", 0, place="line 1")
            return
        if header is None:
            yield Bad("empty", "no header line", 0, place="line 1")
            return
        header = _distinct(header)
        if missing := limits.missing(header, 0):
            yield missing
            return
        index = -1
        while True:
            index += 1
            begins = reader.line_num + 1 + bool(stated)
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = "too_long" if "larger than field limit" in str(error) else "bad_csv"
                yield Bad(reason, f"line {reader.line_num}: {error}", index, place=f"line {begins}")
                continue
            if not values:
                index -= 1
            elif len(values) != len(header):
                detail = f"line {reader.line_num}: {len(values)} fields, the header has {len(header)}"
                shown = ",".join(values)[:EXCERPT].encode("utf-8", "backslashreplace").decode()
                yield Bad("bad_csv", detail, index, shown, f"line {begins}")
            else:
                yield Record(dict(zip(header, values, strict=True)), index, f"line {begins}")


def _distinct(header: list[str]) -> list[str]:
    """Column names, the second of a name as `name_2`: no value is lost behind another."""
    seen: dict[str, int] = {}
    for i, name in enumerate(header):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            header[i] = f"{name}_{seen[name]}"
    return header


def _columnar(
    file: SourceFile, limits: RecordOptions, form: str, within: Range | None = None
) -> Iterator[Record | Bad]:
    """Parquet or Arrow, some batches in memory at a time. Of a damaged row group, what can't be read is named."""
    index, asked = (within.first, (within,)) if within else (0, ())
    for item in apart(f"engine.reader.columnar:{form}", file, limits.max_file_bytes, *asked, memory=MEMORY + file.size):
        if isinstance(item, pa.RecordBatch):
            sound(item)
            yield from _rows(item, index)
            index += len(item)
        elif item and isinstance(item[-1], int):
            lost, at, index = item
            yield Bad("unreadable", lost, at)
        elif missing := limits.missing(item, 0):
            if within is None or within.begin == 0:  # it is said once of a file
                yield missing
            return


def _parquet(file: SourceFile, limits: RecordOptions) -> Iterator[Record | Bad]:
    yield from _columnar(file, limits, "parquet")


def _parquet_within(file: SourceFile, limits: RecordOptions, within: Range) -> Iterator[Record | Bad]:
    yield from _columnar(file, limits, "parquet", within)


def _arrow(file: SourceFile, limits: RecordOptions) -> Iterator[Record | Bad]:
    """Arrow IPC, a stream or a file: what `datasets` saves."""
    yield from _columnar(file, limits, "arrow")


def _rows(batch: pa.RecordBatch, index: int) -> Iterator[Record | Bad]:
    """The rows of a batch whose first row has this number."""
    batch = batch.rename_columns(_distinct(list(batch.schema.names)))
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):  # Arrow does not check that strings are UTF-8, nor that Python has such a date
        for i in range(len(batch)):
            yield _one(batch.slice(i, 1), index + i)
        return
    nested = any(pa.types.is_nested(field.type) for field in batch.schema)
    for i, row in enumerate(rows):
        yield Record(_present(row) if nested else row, index + i, f"row {index + i + 1}")


def _present(value: Any, inside: bool = False) -> Any:
    """Values without the nulls in their structs: in Arrow every struct has the fields that any has; null is not there."""
    if isinstance(value, dict):
        held = cast(dict[str, Any], value)
        return {k: _present(v, True) for k, v in held.items() if not inside or v is not None}
    return [_present(item, True) for item in cast(list[Any], value)] if isinstance(value, list) else value


def _one(batch: pa.RecordBatch, index: int) -> Record | Bad:
    place = f"row {index + 1}"
    try:
        return Record(batch.to_pylist()[0], index, place)
    except UnicodeDecodeError as error:
        shown = error.object[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]
        detail = f"byte 0x{error.object[error.start]:02x} at {error.start}: {error.reason}"
        return Bad("invalid_utf8", detail, index, shown, place)
    except (ValueError, OverflowError) as error:
        return Bad("bad_value", f"{error}", index, place=place)


FORMS: dict[str, Callable[[SourceFile, RecordOptions], Iterator[Record | Bad]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "arrow": _arrow,
}
RANGED: dict[str, Callable[[SourceFile, RecordOptions, Range], Iterator[Record | Bad]]] = {
    "jsonl": _jsonl_within,
    "parquet": _parquet_within,
}
