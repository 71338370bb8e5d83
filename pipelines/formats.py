"""How each file format becomes texts. A parser yields what it can read and says what it can't; it never stops a run."""

from __future__ import annotations

import ast
import csv
import inspect
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import nearest
from pipelines.sources import SourceFile

EXCERPT = 1000  # characters of a rejected document that are kept; the whole is in its source file


@dataclass(frozen=True)
class Text:
    """One document: where it starts (byte, or row for CSV and Parquet) and its other columns as a JSON object."""

    text: str
    offset: int
    metadata: str | None = None


@dataclass(frozen=True)
class Bad:
    """What could not become a document, and why."""

    reason: str
    detail: str
    offset: int
    excerpt: str | None = None


@dataclass(frozen=True)
class Options:
    """The part of a `read` stage's configuration that parsers need.

    Attributes:
        render: columns -> text.
        needs: the columns that `render` needs.
        left_out: the columns that the metadata does without.
        max_bytes: of one document in UTF-8.
    """

    render: Callable[[dict[str, Any]], str]
    needs: frozenset[str]
    left_out: frozenset[str]
    max_bytes: int
    min_chars: int


def parse(file: SourceFile, form: str, options: Options) -> Iterator[Text | Bad]:
    """The documents of one file. What can't be opened or decoded is one `Bad`; texts are checked."""
    at = 0
    try:
        for item in PARSERS[form](file, options):
            at = item.offset
            yield check(item, options.max_bytes) if isinstance(item, Text) else item
    except (OSError, EOFError, pa.ArrowException) as error:
        yield Bad("unreadable", f"after offset {at}: {type(error).__name__}: {error}", at)


def check(item: Text, max_bytes: int) -> Text | Bad:
    """The text itself, or why it can't be a document."""
    text = item.text
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        shown = text[:EXCERPT].encode("utf-8", "backslashreplace").decode()
        return Bad("invalid_utf8", f"a lone surrogate at character {error.start}", item.offset, shown)
    if not text or text.isspace():
        return Bad("empty", f"{size} bytes, all white space" if size else "0 bytes", item.offset, text[:EXCERPT])
    if size > max_bytes:
        return _too_long(size, max_bytes, item.offset, text)
    if "\0" in text:
        where = text.index("\0")
        return Bad("nul_bytes", f"{text.count(chr(0))}, the first at character {where}", item.offset, text[:EXCERPT])
    return item


def _too_long(size: int, limit: int, offset: int, text: str) -> Bad:
    return Bad("too_long", f"{size} bytes, more than `max_bytes` {limit}", offset, text[:EXCERPT].replace("\0", ""))


def _decode(data: bytes, offset: int) -> str | Bad:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = data[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]
        detail = f"byte 0x{data[error.start]:02x} at {error.start}: {error.reason}"
        return Bad("invalid_utf8", detail, offset, shown)


def whole_file(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Plain text and Markdown: the file is the document."""
    with file.open() as handle:
        data: bytes = handle.read(options.max_bytes + 1)
        if len(data) > options.max_bytes:
            size = len(data)
            while block := handle.read(1 << 22):
                size += len(block)
            yield _too_long(size, options.max_bytes, 0, data[: 4 * EXCERPT].decode("utf-8", "replace"))
            return
    text = _decode(data.removeprefix(b"\xef\xbb\xbf"), 0)
    yield Text(text, 0) if isinstance(text, str) else text


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def jsonl(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """One JSON object a line; blank lines are nothing."""
    limit = 6 * options.max_bytes + (1 << 20)  # JSON may spell one byte in six; the rest is room for other columns
    with file.open() as raw:
        for offset, size, data in lines(raw, limit):
            if not data.strip():
                continue
            if size > len(data):
                yield _too_long(size, options.max_bytes, offset, data[: 4 * EXCERPT].decode("utf-8", "replace"))
                continue
            line = _decode(data, offset)
            if isinstance(line, Bad):
                yield line
                continue
            try:
                row = json.loads(line.removeprefix("\ufeff"), parse_constant=_not_json)
            except (ValueError, RecursionError) as error:
                yield Bad("bad_json", str(error), offset, line[:EXCERPT])
                continue
            if not isinstance(row, dict):
                yield Bad("bad_json", f"expected an object, found {type(row).__name__}", offset, line[:EXCERPT])
                continue
            yield _render({str(key): value for key, value in row.items()}, offset, options)


def lines(raw: Any, limit: int, block_size: int = 1 << 20) -> Iterator[tuple[int, int, bytes]]:
    """(offset, size, bytes) of every line, without its end; of a line longer than `limit` only the first bytes."""
    offset = size = 0
    held: list[bytes] = []
    kept = 0
    while block := raw.read(block_size):
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


def comma_separated(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """CSV with a header (tabs for .tsv)."""
    csv.field_size_limit(options.max_bytes + (1 << 16))
    with file.open() as raw:
        # Bytes that are not UTF-8 come through as lone surrogates, so that one bad row does not hide the others.
        stream = io.TextIOWrapper(io.BufferedReader(raw), "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
        header = next(reader, None)
        if header is None:
            yield Bad("empty", "no header line", 0)
            return
        if missing := _missing(options, header, 0):
            yield missing
            return
        index = -1
        while True:
            index += 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = "too_long" if "larger than field limit" in str(error) else "bad_csv"
                yield Bad(reason, f"line {reader.line_num}: {error}", index)
                continue
            if not values:
                index -= 1
            elif len(values) != len(header):
                detail = f"line {reader.line_num}: {len(values)} fields, the header has {len(header)}"
                shown = ",".join(values)[:EXCERPT].encode("utf-8", "backslashreplace").decode()
                yield Bad("bad_csv", detail, index, shown)
            else:
                yield _render(dict(zip(header, values, strict=True)), index, options)


def parquet(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Parquet, one batch of a row group in memory at a time."""
    with file.open() as raw:
        reader = pq.ParquetFile(raw)
        if missing := _missing(options, reader.schema_arrow.names, 0):
            yield missing
            return
        index = 0
        for batch in reader.iter_batches(1000):
            for row in batch.to_pylist():
                yield _render(row, index, options)
                index += 1


def python(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Source code: every docstring and every other string literal of at least `min_chars` characters."""
    with file.open() as raw:
        data: bytes = raw.read()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        shown = data[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT].replace("\0", "")
        yield Bad("bad_syntax", f"{type(error).__name__}: {error}", 0, shown)
        return
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    docstrings: dict[int, str] = {}
    found: list[tuple[int, ast.Constant]] = []
    queue: list[tuple[ast.AST, str]] = [(tree, "")]
    while queue:
        node, name = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
        body: Any = getattr(node, "body", None)
        is_home = isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_home and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            docstrings[id(body[0].value)] = name
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= options.min_chars:
            found.append((starts[node.lineno - 1] + node.col_offset, node))
        if not isinstance(node, ast.JoinedStr):  # the pieces of an f-string are no text of their own
            queue.extend((child, name) for child in ast.iter_child_nodes(node))
    for offset, node in sorted(found, key=lambda pair: pair[0]):
        text = str(node.value)
        if id(node) in docstrings:
            yield Text(inspect.cleandoc(text), offset, _json({"docstring": docstrings[id(node)]}))
        else:
            yield Text(text, offset)


PARSERS: dict[str, Callable[[SourceFile, Options], Iterator[Text | Bad]]] = {
    "text": whole_file,
    "markdown": whole_file,
    "jsonl": jsonl,
    "csv": comma_separated,
    "parquet": parquet,
    "python": python,
}


def _render(row: dict[str, Any], offset: int, options: Options) -> Text | Bad:
    if missing := _missing(options, row, offset):
        return missing
    try:
        text = options.render(row)
    except Exception as error:  # a template is the user's code: anything may happen in it
        return Bad("bad_template", f"{type(error).__name__}: {error}", offset)
    rest = {name: value for name, value in row.items() if name not in options.left_out}
    return Text(text, offset, _json(rest) if rest else None)


def _missing(options: Options, columns: Iterable[str], offset: int) -> Bad | None:
    there = list(columns)
    for name in sorted(options.needs - set(there)):
        hint = f"{nearest(name, there)} Columns: {', '.join(there)}."
        return Bad("missing_text", f"there is no column `{name}`.{hint}", offset)
    return None


def _json(value: dict[str, Any]) -> str:
    """JSON that Arrow can hold: not-a-number becomes null, lone surrogates stay escaped."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
