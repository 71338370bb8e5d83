"""Reading: files in groups, or a large one in ranges, each cut into parts of bounded size by whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
import pyarrow as pa

from engine.errors import UserError
from engine.reader.ranges import LARGE, ranges
from engine.reader.records import Bad, RecordOptions
from engine.reader.sources import Range, SourceFile, SourceWatch, find
from engine.reader.text_files import Options, Text, parse
from engine.reader.typed_rows import REJECTED, Findings, Reading, form_of, level_parts, tables
from engine.stage.job import Job, part_name
from engine.store.schema import DATASETS, row_id
from engine.text.bounded_template import BoundedEnvironment
from pipelines.read.stage import Read

PART_ROWS = 10_000
PART_BYTES = 32 << 20
GROUP_BYTES = LARGE
LEAST_BYTES, GROUPS = (
    32 << 20,
    64,
)  # of a group, where that gives fewer groups than this: so many there should be to spread
GROUP_FILES = 500


@dataclass(frozen=True)
class SourceGroup:
    """What is read at once: files, or a range of one.

    Attributes:
        forms, digests: one a file: its format, and what the plan found in it.
        before, total: bytes on disk of all groups before this one, and of all there are.
    """

    index: int
    files: tuple[SourceFile, ...]
    forms: tuple[str, ...]
    digests: tuple[str, ...]
    within: Range | None
    before: int
    total: int

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.within.size if self.within else sum(file.size for file in self.files)


@dataclass(frozen=True)
class Taken:
    """What came of a group: how many documents, and, where all of a part lack the column of the text, what is said of the first."""

    documents: int
    textless: str | None = None


class Reader:
    """Reads groups of files, and commits their parts."""

    def __init__(self, job: Job, stage: Read) -> None:
        self.job, self.options = job, options_of(stage)
        self.done = job.committed()

    def __call__(self, group: SourceGroup, most: int | None = None) -> Taken:
        """
        Args:
            most: take no more documents than this.
        """
        mark = f"groups/{group.index:05d}"
        if self.job.exchange.exists(mark):
            known: tuple[int, list[str]] = json.loads(self.job.exchange.get(mark))
            if self.done.issuperset(known[1]):  # every part of this group is committed
                return Taken(known[0])
        watch = SourceWatch(group.files, group.digests)
        taken, textless, names = 0, None, list[str]()
        for number, (kept, rejected) in enumerate(parts(self._rows(group), most)):
            name = part_name(group.index, [str(number), *(file.name for file in group.files)])
            name = f"{name[:5]}-{number:05d}{name[5:]}"
            names.append(name)
            if name not in self.done:
                watch.check(group.files)
                self.job.commit(name, kept, rejected)
            taken += len(kept)
            if not taken and textless is None and set(rejected["reason"].to_pylist()) == {"missing_text"}:
                row = rejected.slice(0, 1).to_pylist()[0]
                textless = f"{row['source']}: {row['detail']}"
            self.job.progress(group.before + group.size // 2, group.total, "bytes")
        watch.check(group.files)
        self.job.exchange.put(mark, json.dumps([taken, names]).encode())
        return Taken(taken, textless)

    def _rows(self, group: SourceGroup) -> Iterator[tuple[str, Text | Bad]]:
        for file, form in zip(group.files, group.forms, strict=True):
            for item in parse(file, form, self.options, group.within):
                yield file.name, item


def read(stage: Read, job: Job) -> None:
    files = find(stage.paths, job.base, stage.exclude, job.say)
    if stage.rows:
        _read_rows(stage, stage.rows, files, job)
        return
    taken, textless = 0, None
    for group, done in _each(stage, job, _groups(stage, job, files)):
        taken += done.documents
        textless = textless or done.textless
        job.progress(group.before + group.size, group.total, "bytes", rows=taken)
    if not taken and textless is not None:
        raise UserError(f"{textless} `text` names the column, or is a template over the columns.")
    job.summary(files=len(files), bytes_on_disk=sum(file.size for file in files), documents=taken)


def _each(stage: Read, job: Job, cut: list[SourceGroup]) -> Iterator[tuple[SourceGroup, Taken]]:
    """Every group, with what came of it, in order; with a limit, no more than it takes."""
    if stage.limit is None:
        yield from zip(cut, job.spread(Reader, cut, stage, size=sum(group.size for group in cut)), strict=True)
        return
    reader, left = Reader(job, stage), stage.limit
    for group in cut:  # how many documents one may take is known when those before it are read
        done = reader(group, left)
        left -= done.documents
        yield group, done
        if left <= 0:
            return


def _groups(stage: Read, job: Job, files: list[SourceFile]) -> list[SourceGroup]:
    forms, digests = [form_of(file, stage.format) for file in files], _digests(files, job)
    SourceWatch(files, digests)
    options = options_of(stage)
    limits = RecordOptions(options.max_bytes, options.encoding, options.max_file_bytes)
    made: list[SourceGroup] = []
    before, total = 0, sum(file.size for file in files)
    for group in groups(files):
        these = tuple(files[i] for i in group), tuple(forms[i] for i in group), tuple(digests[i] for i in group)
        cut = ranges(files[group[0]], forms[group[0]], limits) if len(group) == 1 else []
        for within in cut or [None]:
            made.append(SourceGroup(len(made), *these, within, before, total))
            before += made[-1].size
    return made


def options_of(stage: Read) -> Options:
    """
    Raises:
        UserError: `text` is no template.
    """
    render, needs, left_out = renderer(stage.text)
    return Options(render, needs, left_out, stage.max_bytes, stage.min_chars, stage.encoding, stage.max_file_bytes)


def _digests(files: list[SourceFile], job: Job) -> list[str]:
    """What the plan found in each file: what is read is what the key was made of (`Read.sources`).

    Raises:
        UserError: the plan did not see one of them.
    """
    planned = job.sources or {f.name: f"{i}:{f.digest()}" for i, f in enumerate(files)}
    if new := [file.name for file in files if file.name not in planned]:
        raise UserError(f"{', '.join(new[:3])} came after this run was planned; run again to read what is there now.")
    return [planned[file.name].partition(":")[2] for file in files]


def _read_rows(stage: Read, kind: str, files: list[SourceFile], job: Job) -> None:
    """Files as rows of a kind, by the reader that plain inputs have, too."""
    reading = Reading(
        kind, stage.columns, stage.format, stage.encoding, stage.split, stage.max_bytes, stage.max_file_bytes
    )
    findings, done, taken = Findings(), job.committed(), 0
    watch = SourceWatch(files, _digests(files, job))
    names: list[str] = []
    for index, (kept, rejected) in enumerate(tables(files, reading, findings)):
        kept = kept.slice(0, None if stage.limit is None else stage.limit - taken)
        name = part_name(index, [*kept["id"].to_pylist(), *rejected["id"].to_pylist()])
        if name not in done:
            watch.check(files)
            job.commit(name, kept, rejected)
        names.append(name)
        taken += len(kept)
        job.progress(taken, unit="rows")
        if stage.limit is not None and taken >= stage.limit:
            break
    if not taken:
        raise UserError(f"no row can be read as {kind}: {findings.first or 'there are none'}.")
    level_parts(names, job.read_part, lambda name, part: job.commit(name, part), kind)
    job.say(str(findings))
    job.summary(files=len(files), bytes_on_disk=sum(f.size for f in files), rows=taken, shapes=dict(findings.shapes))


def groups(files: list[SourceFile]) -> list[list[int]]:
    """Consecutive files, together up to `GROUP_BYTES`, by how much there is, and `GROUP_FILES` (or one larger file)."""
    most = min(max(sum(file.size for file in files) // GROUPS, LEAST_BYTES), GROUP_BYTES)
    result: list[list[int]] = [[]]
    size = 0
    for index, file in enumerate(files):
        if result[-1] and (size + file.size > most or len(result[-1]) >= GROUP_FILES):
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
            yield _dataset_and_rejected(kept, bad)
            kept, bad, size = [], [], 0
        if full:
            return
    if kept or bad:
        yield _dataset_and_rejected(kept, bad)


def _dataset_and_rejected(kept: list[dict[str, Any]], bad: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
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

    environment = BoundedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        fill = environment.template(text)
        used = jinja2.meta.find_undeclared_variables(environment.parse(text))
    except jinja2.TemplateError as error:
        raise UserError(f"`text: {text}` is not a Jinja template: {error}.") from None

    return fill, frozenset(used), frozenset()
