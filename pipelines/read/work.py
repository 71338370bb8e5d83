"""Reading: files in groups, each cut into parts of bounded size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import jinja2.meta
import pyarrow as pa

from engine.errors import UserError
from engine.reader.records import Bad
from engine.reader.sources import SourceFile, SourceWatch, find
from engine.reader.text_files import Options, Text, parse
from engine.reader.typed_rows import REJECTED, Findings, Reading, form_of, level_parts, tables
from engine.stage.job import Job, part_name
from engine.store.schema import DATASETS, row_id
from engine.text.bounded_template import BoundedEnvironment
from pipelines.read.stage import Read

PART_ROWS = 10_000
PART_BYTES = 32 << 20
GROUP_BYTES = 256 << 20
GROUP_FILES = 500


def read(stage: Read, job: Job) -> None:
    files = find(stage.paths, job.base, stage.exclude, job.say)
    if stage.rows:
        _read_rows(stage, stage.rows, files, job)
        return
    render, needs, left_out = renderer(stage.text)
    options = Options(render, needs, left_out, stage.max_bytes, stage.min_chars, stage.encoding, stage.max_file_bytes)
    forms = [form_of(file, stage.format) for file in files]
    watch = _watch(files, job)
    marks = job.scratch / "groups"
    marks.mkdir(exist_ok=True)
    done, taken, bytes_read = job.committed(), 0, 0
    textless: pa.Table | None = None
    for index, group in enumerate(groups(files)):
        mark = marks / f"{index:05d}"
        size = sum(files[i].size for i in group)
        known: tuple[int, list[str]] = json.loads(mark.read_text()) if mark.exists() else (0, [""])
        if done.issuperset(known[1]):  # every part of this group is committed
            taken += known[0]
        else:
            before, names = taken, list[str]()
            rows = _rows([(files[i], forms[i]) for i in group], options)
            for number, (kept, rejected) in enumerate(
                parts(rows, None if stage.limit is None else stage.limit - taken)
            ):
                name = part_name(index, [str(number), *(files[i].name for i in group)])
                name = f"{name[:5]}-{number:05d}{name[5:]}"
                names.append(name)
                if name not in done:
                    watch.check(files[i] for i in group)
                    job.commit(name, kept, rejected)
                taken += len(kept)
                if not taken and len(rejected) and set(rejected["reason"].to_pylist()) == {"missing_text"}:
                    textless = textless or rejected
                job.progress(bytes_read + size // 2, sum(f.size for f in files), "bytes", rows=taken)
            watch.check(files[i] for i in group)
            with job.keep(mark) as partial:
                partial.write_text(json.dumps([taken - before, names]))
        bytes_read += size
        job.progress(bytes_read, sum(file.size for file in files), "bytes", rows=taken)
        if stage.limit is not None and taken >= stage.limit:
            break
    if not taken and textless is not None:
        row = textless.slice(0, 1).to_pylist()[0]
        raise UserError(f"{row['source']}: {row['detail']} `text` names the column, or is a template over the columns.")
    job.summary(files=len(files), bytes_on_disk=sum(file.size for file in files), documents=taken)


def _read_rows(stage: Read, kind: str, files: list[SourceFile], job: Job) -> None:
    """Files as rows of a kind, by the reader that plain inputs have, too."""
    reading = Reading(
        kind, stage.columns, stage.format, stage.encoding, stage.split, stage.max_bytes, stage.max_file_bytes
    )
    findings, done, taken = Findings(), job.committed(), 0
    watch = _watch(files, job)
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


def _watch(files: list[SourceFile], job: Job) -> SourceWatch:
    """What is read is what the key was made of (`Read.sources`)."""
    planned = job.sources or {f.name: f"{i}:{f.digest()}" for i, f in enumerate(files)}
    if new := [file.name for file in files if file.name not in planned]:
        raise UserError(f"{', '.join(new[:3])} came after this run was planned; run again to read what is there now.")
    return SourceWatch(files, [planned[file.name].partition(":")[2] for file in files])


def _rows(files: list[tuple[SourceFile, str]], options: Options) -> Iterator[tuple[str, Text | Bad]]:
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
