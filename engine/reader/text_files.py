"""How each file format becomes texts. A parser yields what it can read and says what it can't; it never stops a run."""

from __future__ import annotations

import ast
import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from engine.errors import nearest
from engine.reader.apart import Unreadable, apart
from engine.reader.cells import listed
from engine.reader.encodings import looks_like
from engine.reader.records import (
    EXCERPT,
    UNREADABLE,
    Bad,
    RecordOptions,
    decode,
    limited,
    records,
    too_long,
    unreadable,
)
from engine.reader.sources import MOST, ROWS, Range, SourceFile


@dataclass(frozen=True)
class Text:
    """One document: where it starts (byte, or row for CSV and Parquet) and its other columns as a JSON object."""

    text: str
    offset: int
    metadata: str | None = None


@dataclass(frozen=True)
class Options:
    """The part of a `read` stage's configuration that parsers need.

    Attributes:
        render: columns -> text.
        needs: the columns that `render` needs.
        left_out: the columns that the metadata does without.
        max_bytes: of one document in UTF-8.
        max_file_bytes: of a file that is held whole, or that is a small one unpacked.
        encoding: of text that is not said to be UTF-8 by its format; `detect` for UTF-8 or else what it looks like.
    """

    render: Callable[[dict[str, Any]], str]
    needs: frozenset[str]
    left_out: frozenset[str]
    max_bytes: int
    min_chars: int
    encoding: str = "utf-8"
    max_file_bytes: int = MOST


def parse(file: SourceFile, form: str, options: Options, within: Range | None = None) -> Iterator[Text | Bad]:
    """The documents of one file, or of a range of it. What can't be opened or decoded is one `Bad`; texts are checked."""
    at = 0
    try:
        for item in _rows(file, form, options, within) if form in ROWS else PARSERS[form](file, options):
            at = item.offset
            yield check(item, options.max_bytes) if isinstance(item, Text) else item
    except UNREADABLE as error:
        yield unreadable(error, at)


def _rows(file: SourceFile, form: str, options: Options, within: Range | None) -> Iterator[Text | Bad]:
    """The documents of a file of rows."""

    def missing(columns: Iterable[str], offset: int) -> Bad | None:
        return _missing(options, columns, offset)

    limits = RecordOptions(options.max_bytes, options.encoding, options.max_file_bytes, missing)
    for item in records(file, form, limits, within):
        yield item if isinstance(item, Bad) else _render(item.row, item.offset, options)


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
        return too_long(size, max_bytes, item.offset, text)
    if "\0" in text:
        where = text.index("\0")
        return Bad("nul_bytes", f"{text.count(chr(0))}, the first at character {where}", item.offset, text[:EXCERPT])
    return item


def whole_file(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Plain text and Markdown: the file is the document."""
    data = limited(file, options.max_bytes)
    text = data if isinstance(data, Bad) else decode(data, 0, options.encoding)
    yield Text(text, 0) if isinstance(text, str) else text


def source_code(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Source code: the file is the document, its suffix the language."""
    for item in whole_file(file, options):
        named = {"suffix": file.suffix.removeprefix(".")}
        yield Text(item.text, 0, _json(named)) if isinstance(item, Text) else item


def html(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """HTML: the main text without navigation, scripts and markup; all visible text of a page that has no main part."""
    data = limited(file, options.max_file_bytes, "max_file_bytes")  # markup, scripts and pictures may be most of it
    if isinstance(data, Bad):
        yield data
        return
    page = decode(data, 0)
    encoding = "utf-8"
    if isinstance(page, Bad):
        encoding = looks_like(data, html=True)
        page = decode(data, 0, encoding)
    if isinstance(page, Bad):
        yield page
        return
    try:
        ((text, title),) = list(apart("engine.reader.pages:html", page))
    except Unreadable as error:
        yield Bad("unreadable", str(error), 0, page[:EXCERPT].replace("\0", ""))
        return
    facts = {"title": title} if title else {}
    yield Text(text, 0, _json(facts | ({} if encoding == "utf-8" else {"encoding": encoding})))


def pdf(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """PDF: the text of all pages, an empty line between two. A page that can't be read is named, the others are kept."""
    data = limited(file, options.max_file_bytes, "max_file_bytes")
    if isinstance(data, Bad):
        yield Bad(data.reason, data.detail, 0)
        return
    pages: list[str] = []
    size = count = 0
    try:
        for number, (page, fault, count) in enumerate(apart("engine.reader.pages:pdf", data)):
            if fault:
                yield Bad("unreadable", f"page {number + 1} of {count}: {fault}", number)
                continue
            # PDFium ends lines as Windows does, and marks a word that is broken between two lines.
            pages.append(page.replace("\r\n", "\n").replace("\x02", "").replace("\ufffe", "").strip())
            size += len(pages[-1])
            if size > options.max_bytes:
                break  # too long, and said so by who checks the text
    except Unreadable as error:
        yield Bad("unreadable", str(error), len(pages))
        return
    yield Text("\n\n".join(page for page in pages if page), 0, _json({"pages": count}))


def python(file: SourceFile, options: Options) -> Iterator[Text | Bad]:
    """Source code: every docstring and every other string literal of at least `min_chars` characters."""
    data = limited(file, options.max_bytes)
    if isinstance(data, Bad):
        yield data
        return
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
    "python": python,
}


def _render(row: dict[str, Any], offset: int, options: Options) -> Text | Bad:
    if missing := _missing(options, row, offset):
        return missing
    for name in options.needs:
        if isinstance(value := row[name], bytes):
            text = decode(value, offset, options.encoding)
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
        hint = f"{nearest(name, there)} Columns: {listed(there)}."
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
