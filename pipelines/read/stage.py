"""`read`: files -> documents. Every row keeps the file and the offset it came from; what can't be read is kept with a reason."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from engine.errors import UserError, nearest
from engine.stage.job import Job, part_name
from engine.stage.stage import NotIdentity, Port, Stage
from engine.store.schema import DATASETS, row_id
from pipelines.read.formats import Bad, Options, Text, parse
from pipelines.read.sources import FORMATS, SourceFile, find

Format = Literal[
    "auto", "text", "markdown", "html", "pdf", "code", "jsonl", "json", "csv", "parquet", "arrow", "python"
]
PART_ROWS = 10_000
PART_BYTES = 32 << 20
GROUP_BYTES = 256 << 20
GROUP_FILES = 500


class Read(Stage):
    """Read files as documents.

    A document that is not UTF-8, is empty, longer than `max_bytes` or holds NUL bytes, a line that is no JSON, a file
    that can't be opened: each becomes a rejected row with the reason, and reading goes on.
    """

    takes: ClassVar[dict[str, Port]] = {}
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    narrows: ClassVar[bool] = True

    paths: Annotated[list[str], NotIdentity] = Field(
        min_length=1,
        description="Files, folders or globs relative to the recipe's folder, URLs, `hub:NAME?config=C&split=S` for a "
        "Hugging Face dataset (of the hub, or a folder), or `stdlib:GLOB` for the running interpreter's standard library. "
        "What counts for the identity is the content of the files, by relative path.",
    )
    exclude: Annotated[list[str], NotIdentity] = Field(
        default_factory=lambda: [], description="Globs over relative paths to leave out; `*` also matches `/`."
    )
    format: Format = Field(
        "auto",
        description="`auto` goes by suffix; .gz, .zst and .bz2 are unpacked. `python` takes docstrings and long string "
        "literals, `code` whole source files.",
    )
    encoding: str = Field(
        "utf-8",
        description="Of text, code, jsonl and csv: a codec, or `detect`: UTF-8, or else what the bytes look like.",
    )
    text: str | None = Field(
        None,
        description="For rows (jsonl, json, csv, parquet, arrow): the column with the text (`text` if not given), or a Jinja template "
        "over the columns. The columns go to `metadata`, all but one that is the text itself.",
    )
    min_chars: int = Field(200, ge=1, description="Python: the shortest docstring or string literal to take.")
    max_bytes: int = Field(20_000_000, ge=1, description="The longest document, in bytes of UTF-8.")
    limit: int | None = Field(None, ge=1, description="Stop after this many documents.")
    license: Annotated[str | None, NotIdentity] = Field(
        None, description="Of these texts, e.g. `cc-by-4.0`. Stands in the card of every model made from them."
    )
    max_failed: Annotated[float, NotIdentity] = Field(
        1.0, ge=0, le=1, description="Share of rows that may fail before the stage does."
    )

    @field_validator("encoding")
    @classmethod
    def _known_codec(cls, name: str) -> str:
        if name == "detect":
            return name
        try:
            b" ".decode(name, "replace")  # base64 and its like are codecs, too, but not of text
            return codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"Python has no text codec `{name}`; `detect` finds out which") from None

    def sources(self, base: str) -> dict[str, str]:
        # Order is part of the result, so it is part of the identity.
        return {file.name: f"{i}:{file.digest()}" for i, file in enumerate(find(self.paths, base, self.exclude))}

    def run(self, job: Job) -> None:
        files = find(self.paths, job.base, self.exclude)
        render, needs, left_out = renderer(self.text)
        options = Options(render, needs, left_out, self.max_bytes, self.min_chars, self.encoding)
        forms = [self._format(file) for file in files]
        marks = job.scratch / "groups"
        marks.mkdir(exist_ok=True)
        done, taken, read = job.committed(), 0, 0
        lost: pa.Table | None = None
        for index, group in enumerate(groups(files)):
            mark = marks / f"{index:05d}"
            size = sum(files[i].size for i in group)
            if mark.exists():  # every part of this group is committed
                taken += int(mark.read_text())
            else:
                before = taken
                rows = self._rows([(files[i], forms[i]) for i in group], options)
                for number, (kept, rejected) in enumerate(
                    parts(rows, None if self.limit is None else self.limit - taken)
                ):
                    name = part_name(index, [str(number), *(files[i].name for i in group)])
                    name = f"{name[:5]}-{number:05d}{name[5:]}"
                    if name not in done:
                        job.commit(name, kept, rejected)
                    taken += len(kept)
                    if not taken and len(rejected) and set(rejected["reason"].to_pylist()) == {"missing_text"}:
                        lost = lost or rejected
                    job.progress(read + size // 2, sum(f.size for f in files), "bytes", rows=taken)
                mark.write_text(str(taken - before))
            read += size
            job.progress(read, sum(file.size for file in files), "bytes", rows=taken)
            if self.limit is not None and taken >= self.limit:
                break
        if not taken and lost is not None:
            row = lost.slice(0, 1).to_pylist()[0]
            raise UserError(
                f"{row['source']}: {row['detail']} `text` names the column, or is a template over the columns."
            )
        job.summary(files=len(files), bytes_on_disk=sum(file.size for file in files), documents=taken)

    def _format(self, file: SourceFile) -> str:
        if self.format != "auto":
            return self.format
        if file.suffix not in FORMATS:
            raise UserError(
                f"can't tell the format of {file.path} by its suffix `{file.suffix}`.{nearest(file.suffix, FORMATS)} "
                f"Give `format`, or leave the file out with `exclude`. Known: {', '.join(FORMATS)}."
            )
        return FORMATS[file.suffix]

    def _rows(self, files: list[tuple[SourceFile, str]], options: Options) -> Iterator[tuple[str, Text | Bad]]:
        for file, form in files:
            for item in parse(file, form, options):
                yield file.name, item


def groups(files: list[SourceFile]) -> list[list[int]]:
    """Consecutive files, together at most `GROUP_BYTES` and `GROUP_FILES` (or one larger file)."""
    result: list[list[int]] = [[]]
    size = 0
    for index, file in enumerate(files):
        if result[-1] and (size + file.size > GROUP_BYTES or len(result[-1]) >= GROUP_FILES):
            result.append([])
            size = 0
        result[-1].append(index)
        size += file.size
    return result


def parts(rows: Iterator[tuple[str, Text | Bad]], limit: int | None) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Cut what was read into (kept, rejected) tables of bounded size; stops after `limit` kept rows."""
    kept: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    size = count = 0
    for source, item in rows:
        if isinstance(item, Text):
            row = {"source": source, "offset": item.offset, "text": item.text, "metadata": item.metadata}
            kept.append({"id": row_id("Document", source, item.offset, item.text), "parents": [], **row})
            size += len(item.text)
            count += 1
        else:
            row = {"source": source, "offset": item.offset, "text": item.excerpt}
            identity = row_id("Document", source, item.offset, item.reason, item.detail)
            bad.append({"id": identity, **row, "reason": item.reason, "detail": item.detail, "failed": True})
            size += len(item.excerpt or "")
        full = limit is not None and count >= limit
        if full or size >= PART_BYTES or len(kept) + len(bad) >= PART_ROWS:
            yield _tables(kept, bad)
            kept, bad, size = [], [], 0
        if full:
            return
    if kept or bad:
        yield _tables(kept, bad)


REJECTED = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("offset", pa.int64()),
    ("reason", pa.string()), ("detail", pa.string()), ("failed", pa.bool_()),
])  # fmt: skip


def _tables(kept: list[dict[str, Any]], bad: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    return pa.Table.from_pylist(kept, DATASETS["Document"]), pa.Table.from_pylist(bad, REJECTED)


def renderer(text: str | None) -> tuple[Callable[[dict[str, Any]], str], frozenset[str], frozenset[str]]:
    """How a row's columns become its text, which columns that needs, and which the metadata does without.

    Args:
        text: a column's name, or a Jinja template (it holds `{{` or `{%`).

    Raises:
        UserError: the template does not parse.
    """
    if text is None or ("{{" not in text and "{%" not in text):
        column = text or "text"

        def pick(row: dict[str, Any]) -> str:
            return "" if row[column] is None else str(row[column])

        return pick, frozenset({column}), frozenset({column})

    import jinja2
    import jinja2.meta
    import jinja2.sandbox

    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"`text: {text}` is not a Jinja template: {error}.") from None

    def fill(row: dict[str, Any]) -> str:
        return template.render(row)

    return fill, frozenset(used), frozenset()
