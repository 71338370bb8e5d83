"""How each file format becomes texts. A parser yields what it can read and says what it can't; it never stops a run."""

from __future__ import annotations

import ast
import codecs
import contextlib
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
import pypdfium2
from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingModuleSource]  # compiled
from resiliparse.parse.encoding import detect_encoding  # uchardet, as browsers have it  # pyright: ignore[reportMissingModuleSource]
from resiliparse.parse.html import HTMLTree

from engine.errors import nearest
from engine.store.parquet import open_parquet
from pipelines.read.sources import SourceFile

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
        encoding: of text that is not said to be UTF-8 by its format; `detect` for UTF-8 or else what it looks like.
    """

    render: Callable[[dict[str, Any]], str]
    needs: frozenset[str]
    left_out: frozenset[str]
    max_bytes: int
    min_chars: int
    encoding: str = "utf-8"


def parse(file: SourceFile, form: str, options: Options) -> Iterator[Text | Bad]:
    """The documents of one file. What can't be opened or decoded is one `Bad`; texts are checked."""
    at = 0
    try:
        for item in PARSERS[form](file, options):
            at = item.offset
            yield check(item, options.max_bytes) if isinstance(item, Text) else item
    except (OSError, EOFError, UnicodeError, pa.ArrowException) as error:
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


def _decode(data: bytes, offset: int, encoding: str = "utf-8") -> str | Bad:
    try:
        return data.decode("utf-8" if encoding == "detect" else encoding)
    except UnicodeDecodeError as error:
        if encoding == "detect" and (found := _looks_like(data)) != "utf-8":
            return _decode(data, offset, found)
        shown = data[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]
        detail = f"byte 0x{data[error.start]:02x} at {error.start}: {error.reason}"
        return Bad("invalid_utf8" if encoding in ("utf-8", "detect") else "bad_encoding", detail, offset, shown)


def _looks_like(data: bytes, html: bool = False) -> str:
    """The encoding that bytes which are not UTF-8 claim (HTML) or seem to be in, by Python's name for it."""
    named = detect_encoding(data, html5_compatible=True, from_html_meta=html) or "utf-8"
    try:
        return codecs.lookup(named).name
    except LookupError:
        return "utf-8"


def _limited(file: SourceFile, limit: int) -> bytes | Bad:
    """The bytes of a file, unless there are more than `limit`."""
    with file.open() as handle:
        data: bytes = handle.read(limit + 1)
        if len(data) <= limit:
            return data
        size = len(data)
        while block := handle.read(1 << 22):
            size += len(block)
    return _too_long(size, limit, 0, data[: 4 * EXCERPT].decode("utf-8", "replace"))


def whole_file(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Plain text and Markdown: the file is the document."""
    data = _limited(file, options.max_bytes)
    text = data if isinstance(data, Bad) else _decode(data.removeprefix(codecs.BOM_UTF8), 0, options.encoding)
    yield Text(text, 0) if isinstance(text, str) else text


def source_code(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Source code: the file is the document, its suffix the language."""
    for item in whole_file(file, options):
        named = {"suffix": file.suffix.removeprefix(".")}
        yield Text(item.text, 0, _json(named)) if isinstance(item, Text) else item


def html(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """HTML: the main text without navigation, scripts and markup; all visible text of a page that has no main part."""
    data = _limited(file, 8 * options.max_bytes)  # markup, scripts and pictures in the page may be most of it
    if isinstance(data, Bad):
        yield data
        return
    page = _decode(data.removeprefix(codecs.BOM_UTF8), 0, "utf-8")
    encoding = "utf-8"
    if isinstance(page, Bad):
        encoding = _looks_like(data, html=True)
        page = _decode(data, 0, encoding)
    if isinstance(page, Bad):
        yield page
        return
    try:
        tree = HTMLTree.parse(page)
        text = extract_plain_text(tree, main_content=True, preserve_formatting=True)
        text = text or extract_plain_text(tree, preserve_formatting=True)
        title = " ".join((tree.title or "").split())
    except Exception as error:  # whatever a parser written in C++ makes of a broken page
        yield Bad("unreadable", f"{type(error).__name__}: {error}", 0, page[:EXCERPT])
        return
    facts = {"title": title} if title else {}
    yield Text(text, 0, _json(facts | ({} if encoding == "utf-8" else {"encoding": encoding})))


def pdf(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """PDF: the text of all pages, an empty line between two. A page that can't be read is named, the others are kept."""
    with file.open() as raw:
        data: bytes = raw.read()
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        yield Bad("unreadable", f"{type(error).__name__}: {error}", 0)
        return
    pages: list[str] = []
    with contextlib.closing(document):
        for number in range(len(document)):
            try:
                page = document[number].get_textpage().get_text_bounded()
            except (pypdfium2.PdfiumError, UnicodeError) as error:
                yield Bad("unreadable", f"page {number + 1} of {len(document)}: {error}", number)
                continue
            # PDFium ends lines as Windows does, and marks a word that is broken between two lines.
            pages.append(page.replace("\r\n", "\n").replace("\x02", "").replace("\ufffe", "").strip())
        facts = {"pages": len(document)}
    yield Text("\n\n".join(page for page in pages if page), 0, _json(facts))


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
            line = _decode(data, offset, options.encoding)
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


def json_file(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """JSON: an array of objects (the offset is the place in it), one object, or, as many call it, an object a line."""
    with file.open() as raw:
        start: bytes = raw.read(1 << 16)
    first = start.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)
    with contextlib.suppress(ValueError, RecursionError):
        if len(first) == 2 and isinstance(json.loads(first[0]), dict):
            yield from jsonl(file, options)
            return
    data = _limited(file, 64 * options.max_bytes)
    text = data if isinstance(data, Bad) else _decode(data.removeprefix(codecs.BOM_UTF8), 0, options.encoding)
    if isinstance(text, Bad):
        yield text
        return
    try:
        rows = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        yield Bad("bad_json", str(error), 0, text[:EXCERPT])
        return
    for index, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if isinstance(row, dict):
            yield _render({str(key): value for key, value in row.items()}, index, options)
        else:
            yield Bad("bad_json", f"expected an object, found {type(row).__name__}", index, str(row)[:EXCERPT])


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
        buffered = io.BufferedReader(raw)
        encoding = options.encoding
        if encoding == "detect":
            start = buffered.peek(1 << 16)
            encoding = "utf-8" if isinstance(_decode(start[: start.rfind(b"\n") + 1], 0), str) else _looks_like(start)
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        stream = io.TextIOWrapper(buffered, encoding, errors="surrogateescape", newline="")
        # Strict, or a quote that is never closed would swallow all rows after it without a word.
        reader = csv.reader(stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            yield Bad("bad_csv", f"the header line: {error}", 0)
            return
        if header is None:
            yield Bad("empty", "no header line", 0)
            return
        header = _distinct(header)
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


def _distinct(header: list[str]) -> list[str]:
    """Column names, the second of a name as `name_2`: no value is lost behind another."""
    seen: dict[str, int] = {}
    for i, name in enumerate(header):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            header[i] = f"{name}_{seen[name]}"
    return header


def parquet(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Parquet, one batch of a row group in memory at a time. Of a damaged row group, what can't be read is named."""
    with file.open() as raw:
        reader = open_parquet(raw)
        if missing := _missing(options, reader.schema_arrow.names, 0):
            yield missing
            return
        first = 0
        for group in range(reader.num_row_groups):
            index, size = first, reader.metadata.row_group(group).num_rows
            try:
                for batch in reader.iter_batches(1000, row_groups=[group], use_threads=False):
                    yield from _records(batch, index, options)
                    index += len(batch)
            except (OSError, pa.ArrowException) as error:
                lost = f"row group {group}: {first + size - index} rows from row {index} on"
                yield Bad("unreadable", f"{lost}: {type(error).__name__}: {error}", index)
            first += size


def arrow(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Arrow IPC, a stream or a file: what `datasets` saves."""
    with file.open() as raw:
        source = pa.PythonFile(raw, mode="r")
        if raw.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            raw.seek(0)
            batches = reader = pa.ipc.open_stream(source)
        if missing := _missing(options, reader.schema.names, 0):
            yield missing
            return
        index = 0
        for batch in batches:
            for start in range(0, len(batch), 1000):
                yield from _records(batch.slice(start, 1000), index + start, options)
            index += len(batch)


def _records(batch: pa.RecordBatch, index: int, options: Options) -> Iterator[Text | Bad]:
    """The rows of a batch whose first row has this number."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check that strings are UTF-8: find the row that isn't
        for i in range(len(batch)):
            try:
                yield _render(batch.slice(i, 1).to_pylist()[0], index + i, options)
            except UnicodeDecodeError as error:
                shown = error.object[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]
                detail = f"byte 0x{error.object[error.start]:02x} at {error.start}: {error.reason}"
                yield Bad("invalid_utf8", detail, index + i, shown)
        return
    for i, row in enumerate(rows):
        yield _render(row, index + i, options)


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
    "code": source_code,
    "html": html,
    "pdf": pdf,
    "jsonl": jsonl,
    "json": json_file,
    "csv": comma_separated,
    "parquet": parquet,
    "arrow": arrow,
    "python": python,
}


def _render(row: dict[str, Any], offset: int, options: Options) -> Text | Bad:
    if missing := _missing(options, row, offset):
        return missing
    for name in options.needs:
        if isinstance(value := row[name], bytes):
            text = _decode(value, offset, options.encoding)
            if isinstance(text, Bad):
                return text
            row[name] = text
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
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_spelling)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=_spelling)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    return text


def _spelling(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
