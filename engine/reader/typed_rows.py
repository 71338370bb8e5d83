"""Files that people bring as rows of a kind: typed, with ids, whatever shape they have; what can't be understood is rejected.

The one reader of everything that is not an artifact: `read` uses it, and so does every input that is a plain file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from engine.errors import UserError, nearest
from engine.reader.cells import Unfit, cell, plain
from engine.reader.mapping import ColumnMapping
from engine.reader.records import EXCERPT, Bad, Record, RecordOptions, records
from engine.reader.shapes import Row, kind_of, metadata, understand
from engine.reader.sources import FORMATS, MOST, ROWS, SourceFile
from engine.reader.text_files import Options, Text, parse
from engine.store import schema

PART_ROWS = 10_000
PART_BYTES = 32 << 20
# Raised by hand when the same files would become other rows than before; part of the key of every plain input.
VERSION = 2
# Kinds whose rows stages group by `prompt_id`: a row without one gets its prompt's, so that answers to one prompt belong together.
GROUPED = ("Candidate", "Ranking")
EXTRA: dict[str, pa.DataType] = {
    "tools": pa.string(), "split": pa.string(), "label": pa.bool_(), "metadata": pa.string(),
}  # fmt: skip
REJECTED = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("offset", pa.int64()),
    ("reason", pa.string()), ("detail", pa.string()), ("failed", pa.bool_()),
])  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How files are read as rows.

    Attributes:
        kind: what they become; one of `engine.store.schema.DATASETS`, but TokenBlock.
        columns: our names for theirs (`engine.reader.mapping`).
        format: one of `FORMATS`' values; `auto` goes by suffix.
        encoding: of text whose first bytes don't prove another; `detect` for UTF-8 or else what it looks like.
        split: take rows of this split alone, by their `split` column or by their file's name.
        max_bytes: of one text in UTF-8.
        max_file_bytes: of a file that is held whole, or that is a small one unpacked.
    """

    kind: str
    columns: Mapping[str, str | None] = field(default_factory=lambda: {})
    format: str = "auto"
    encoding: str = "utf-8"
    split: str | None = None
    max_bytes: int = 20_000_000
    max_file_bytes: int = MOST


@dataclass
class Findings:
    """What was read, in numbers: rows by shape, rejected rows by reason, ids that repeat."""

    shapes: Counter[str] = field(default_factory=lambda: Counter())
    reasons: Counter[str] = field(default_factory=lambda: Counter())
    repeated: int = 0
    elsewhere: int = 0
    first: str = ""

    def __str__(self) -> str:
        told = [f"{count:,} row{'s' * (count != 1)}: {shape}" for shape, count in self.shapes.most_common()]
        if bad := self.reasons.total():
            told.append(f"{bad:,} rejected ({', '.join(sorted(self.reasons))}), the first: {self.first}")
        if self.repeated:
            told.append(
                f"{self.repeated:,} rows repeat an id; they have ids of their own now, theirs are in `metadata`"
            )
        if self.elsewhere:
            told.append(f"{self.elsewhere:,} rows of other splits left out")
        return "; ".join(told) or "no rows"


def form_of(file: SourceFile, given: str = "auto") -> str:
    """The format of a file.

    Raises:
        UserError: its suffix tells none.
    """
    if given != "auto":
        return given
    if file.suffix not in FORMATS:
        raise UserError(
            f"can't tell the format of {file.path} by its suffix `{file.suffix}`.{nearest(file.suffix, FORMATS)} "
            f"Give `format`, or leave the file out with `exclude`. Known: {', '.join(FORMATS)}."
        )
    return FORMATS[file.suffix]


def tables(files: list[SourceFile], reading: Reading, findings: Findings) -> Iterator[tuple[pa.Table, pa.Table]]:
    """All rows of some files as (kept, rejected) tables of bounded size; they may differ in how wide their messages are, and
    in which of `EXTRA` they have (see `level`).
    """
    yield from _cut(_Reader(reading, findings).rows(_records(files, reading)), reading.kind)


def table(
    rows: Iterable[Mapping[str, Any]], name: str, reading: Reading, findings: Findings
) -> tuple[pa.Table, pa.Table]:
    """Rows that a program brings, as one (kept, rejected) pair."""
    given = ((name, Record(dict(row), i, f"row {i + 1}"), None) for i, row in enumerate(rows))
    parts = list(_cut(_Reader(reading, findings).rows(given), reading.kind))
    kept = level([kept for kept, _ in parts], reading.kind)
    empty = schema.DATASETS[reading.kind].empty_table(), REJECTED.empty_table()
    return (pa.concat_tables(kept), pa.concat_tables([bad for _, bad in parts])) if parts else empty


def level(parts: list[pa.Table], kind: str) -> list[pa.Table]:
    """Tables of one kind with the same columns and types: those that any of them has."""
    names = [name for name in EXTRA if any(name in part.column_names for part in parts)]
    whole: list[pa.Table] = []
    for part in parts:
        for name in names:
            if name not in part.column_names:
                part = part.append_column(name, pa.nulls(len(part), EXTRA[name]))
        whole.append(
            part.select([*schema.DATASETS[kind].names, *(n for n in names if n not in schema.DATASETS[kind].names)])
        )
    return schema.united(whole)


def level_parts(
    names: list[str], read: Callable[[str], pa.Table], write: Callable[[str, pa.Table], None], kind: str
) -> None:
    """Make parts that are written already alike: rows far down may have what no row before had, tool calls, say, or a split."""
    forms = [read(name).slice(0, 0) for name in names]
    if any(form.schema != forms[0].schema for form in forms):
        for name in names:
            write(name, level([read(name), *forms], kind)[0])


def sample(files: list[SourceFile], reading: Reading, rows: int = 20) -> tuple[pa.Table, Findings]:
    """The first rows of some files, and what was found among them."""
    findings = Findings()
    taken: list[Row] = []
    for item in _Reader(reading, findings).rows(_records(files, reading)):
        if "reason" not in item:
            taken.append(item)
        if len(taken) + findings.reasons.total() >= rows:
            break
    return _table(reading.kind, taken), findings


def first_kind(files: list[SourceFile], reading: Reading, accepts: tuple[str, ...], rows: int = 200) -> str | None:
    """Which of these kinds the first rows are; None where they are none. Files of text are documents."""
    votes: Counter[str] = Counter()
    mapping = ColumnMapping(reading.columns)
    for seen, (_, item, _) in enumerate(_records(files, reading)):
        if seen >= rows:
            break
        if isinstance(item, Record):
            try:
                row, _ = mapping(item.row)
            except Unfit:
                continue
            if found := kind_of(row, accepts):
                votes[found] += 1
    return votes.most_common(1)[0][0] if votes else None


Given = tuple[str, Record | Bad, str | None]


def _records(files: list[SourceFile], reading: Reading) -> Iterator[Given]:
    """(name of the file, record, split that the file's name tells) of every file, texts as records with a `text`."""
    splits = {file.split for file in files} - {None}
    for file in files:
        split = file.split if len(splits) > 1 else None  # one file called test.jsonl is what it is brought for
        form = form_of(file, reading.format)
        if form in ROWS:
            found: Iterable[Record | Bad] = records(
                file, form, RecordOptions(reading.max_bytes, reading.encoding, reading.max_file_bytes)
            )
        else:
            found = _texts(file, form, reading)
        for item in found:
            if form == "csv" and isinstance(item, Record):  # where nothing stands in a CSV there is nothing
                item = replace(item, row={name: value or None for name, value in item.row.items()})
            yield file.name, item, split


def _texts(file: SourceFile, form: str, reading: Reading) -> Iterator[Record | Bad]:
    options = Options(
        lambda row: "", frozenset(), frozenset(), reading.max_bytes, 200, reading.encoding, reading.max_file_bytes
    )
    for item in parse(file, form, options):
        if isinstance(item, Text):
            facts = {"metadata": item.metadata} if item.metadata else {}
            yield Record({"text": item.text, **facts}, item.offset, "")
        else:
            yield item


class _Reader:
    """Turns records into rows of a kind; knows which ids it has met, and how many answers each prompt has."""

    def __init__(self, reading: Reading, findings: Findings) -> None:
        self.reading, self.findings = reading, findings
        self.columns = ColumnMapping(reading.columns)
        self.kind, self.names = reading.kind, schema.DATASETS[reading.kind].names
        self.ids: set[str] = set()
        self.answers: Counter[str] = Counter()

    def rows(self, given: Iterable[Given]) -> Iterator[Row]:
        """Rows in the columns of their kind, and rejected ones, which have a `reason`."""
        for source, item, split in given:
            if isinstance(item, Bad):
                yield self._reject(source, item)
                continue
            try:
                row = self._row(source, item, split)
            except Unfit as fault:
                shown = json.dumps(plain(item.row), ensure_ascii=False)[:EXCERPT]
                yield self._reject(source, Bad(fault.reason, str(fault), item.offset, shown, item.place))
                continue
            if row is not None:
                yield row

    def _row(self, source: str, record: Record, split: str | None) -> Row | None:
        given, renamed = self.columns(record.row)
        shaped = understand(self.kind, given)
        made = shaped.row
        if split and "split" not in made:
            made["split"] = split
        if self.reading.split and made.get("split") != self.reading.split:
            self.findings.elsewhere += 1
            return None
        used = {renamed.get(name, name) for name in shaped.used}
        for name in ("id", "parents", "source", "offset"):
            if name in self.names and given.get(name) is not None and not (name == "id" and given["id"] == ""):
                made[name] = given[name]
                used.add(renamed.get(name, name))
        row = self._typed(made)
        if self.kind == "Ranking":
            _check_ranks(row)
        if self.kind in GROUPED and row.get("prompt_id") is None:
            self._group(row)
        own = schema.row_id(self.kind, source, record.offset, json.dumps(plain(record.row), ensure_ascii=False))
        if row.get("id") is not None and row["id"] in self.ids:
            self.findings.repeated += 1
            used.discard(renamed.get("id", "id"))
            row["id"] = own
        row["id"] = row.get("id") or own
        self.ids.add(row["id"])
        row["parents"] = row.get("parents") or []
        if "source" in self.names:
            row["source"] = row.get("source") or source
            row["offset"] = record.offset if row.get("offset") is None else row["offset"]
        told = metadata(record.row, used, shaped.more)
        if told != "{}" or "metadata" in self.names:
            row["metadata"] = told
        self.findings.shapes[shaped.shape] += 1
        return row

    def _typed(self, made: Row) -> Row:
        """The columns of the kind, each of its type."""
        row: Row = {}
        for name, value in made.items():
            kind = EXTRA[name] if name in EXTRA else schema.DATASETS[self.kind].field(name).type
            row[name] = schema.stored(value) if kind == schema.Messages else cell(value, kind, name)
        return row

    def _group(self, row: Row) -> None:
        """Give a row the id of its prompt, by what the prompt says, and with it what tells the answers to it apart."""
        prompt_id = schema.row_id("Prompt", schema.messages_digest(row["prompt"]))
        row["prompt_id"] = prompt_id
        if self.kind == "Candidate" and row.get("sample") is None:
            row["sample"] = self.answers[prompt_id]
        if self.kind == "Ranking" and row.get("candidates") is None:
            row["candidates"] = [schema.row_id("Candidate", prompt_id, said) for said in row["completions"]]
        self.answers[prompt_id] += 1

    def _reject(self, source: str, bad: Bad) -> Row:
        kind, _, number = bad.place.partition(" ")
        where = f"{source}:{number}" if kind == "line" else f"{source}: {bad.place}" if bad.place else source
        detail = f"{where}: {bad.detail}"
        self.findings.reasons[bad.reason] += 1
        self.findings.first = self.findings.first or detail
        row = {"text": bad.excerpt, "source": source, "offset": bad.offset, "reason": bad.reason, "detail": detail}
        return {"id": schema.row_id("Document", source, bad.offset, bad.reason, detail), **row, "failed": True}


def _check_ranks(row: Row) -> None:
    """Raises Unfit where a ranking has not one rank an answer."""
    lists = [name for name in ("completions", "candidates", "ranks", "shown") if row.get(name) is not None]
    if len({len(row[name]) for name in lists}) > 1:
        told = ", ".join(f"{len(row[name])} {name}" for name in lists)
        raise Unfit("bad_ranking", "ranks", f"expected one a completion, found {told}")


def _cut(rows: Iterable[Row], kind: str) -> Iterator[tuple[pa.Table, pa.Table]]:
    kept: list[Row] = []
    bad: list[Row] = []
    size = 0
    for row in rows:
        (bad if "reason" in row else kept).append(row)
        size += _size(row)
        if size >= PART_BYTES or len(kept) + len(bad) >= PART_ROWS:
            yield _table(kind, kept), pa.Table.from_pylist(bad, REJECTED)
            kept, bad, size = [], [], 0
    if kept or bad:
        yield _table(kind, kept), pa.Table.from_pylist(bad, REJECTED)


def _table(kind: str, rows: list[Row]) -> pa.Table:
    names = schema.DATASETS[kind].names
    extra = [
        (name, form)
        for name, form in EXTRA.items()
        if name not in names and any(row.get(name) is not None for row in rows)
    ]
    return schema.table(kind, rows, extra)


def _size(row: Row) -> int:
    """About how many characters a row holds."""
    total = 0
    for value in row.values():
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, list):
            total += sum(len(turn.get("content") or "") if isinstance(turn, dict) else 8 for turn in value)
    return total
