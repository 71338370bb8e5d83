"""A job: one stage being carried out. What a stage's `run` is handed.

Work is cut into partitions; each is committed as one file under a name derived from what went in. A killed job repeats
at most the partition in flight, and because seeds are derived, it ends with the same bytes.

A map over rows::

    for part in job.parts("documents", rows=10_000):   # committed ones are skipped
        kept, removed = clean(part.table)
        part.commit(kept, rejected=removed)

A model::

    trainer.save(job.output)     # a local folder; its files become the artifact's when `run` returns
    job.scratch                  # a local folder for checkpoints that survives a kill
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from engine import seeds
from engine.errors import StageFailed, UserError
from engine.store import schema
from engine.store.store import MANIFEST, Artifact, Store, digest_json, read_parquet
from engine.view.card import CARD, card

SUMMARY = "summary.json"
# Columns whose values are hardly ever equal: to look for equal ones takes as long as to compress them.
UNLIKE = ("id", "text")
Emit = Callable[[dict[str, Any]], None]


def encode(table: pa.Table) -> bytes:
    """A table as Parquet bytes (zstd). The same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(None), buffer, compression="zstd", compression_level=1,
        use_dictionary=[  # pyright: ignore[reportArgumentType]  # names are taken too
            name for name in table.column_names if name not in UNLIKE],
    )  # fmt: skip
    return buffer.getvalue()


@dataclass
class Part:
    """A slice of an input that has not been committed yet."""

    job: Job
    name: str
    table: pa.Table

    def commit(self, kept: pa.Table, rejected: pa.Table | None = None) -> None:
        """Write the rows made from this slice, and those that did not make it (see `Job.commit`)."""
        self.job.commit(self.name, kept, rejected, consumed=len(self.table))


@dataclass
class Job:
    """Inputs, a place to commit rows or files, derived seeds and progress.

    Attributes:
        inputs: port -> label -> artifact; the label is the name in the recipe.
        gives: the kind of dataset or model being made.
        base: the folder of the recipe, for paths in its configuration.
        options: how to run, never what to make (`{"wait": bool}`).
        spent: what it took, e.g. tokens and money by model; kept with the timings, outside the digest.
    """

    store: Store
    artifact: str
    gives: str
    inputs: dict[str, dict[str, Artifact]]
    seed: int
    base: str = "."
    emit: Emit = lambda event: None
    options: dict[str, Any] = field(default_factory=lambda: {})
    spent: dict[str, Any] = field(default_factory=lambda: {})
    _last_progress: float = 0.0

    # -- what comes in -----------------------------------------------------------------------------------------------

    def input(self, port: str) -> Artifact:
        """The only artifact of a port."""
        (artifact,) = self.inputs[port].values()
        return artifact

    def maybe(self, port: str) -> Artifact | None:
        """The only artifact of an optional port, or None."""
        return self.input(port) if self.inputs.get(port) else None

    def all(self, port: str) -> list[Artifact]:
        return list(self.inputs.get(port, {}).values())

    def rows(self, port: str) -> int:
        return sum(artifact.rows for artifact in self.all(port))

    def derive(self, *parts: str | int) -> int:
        """A seed in [0, 2**63) for these parts, e.g. `job.derive(row["id"])`."""
        return seeds.derive(self.seed, *parts)

    def parts(self, port: str, rows: int = 10_000) -> Iterator[Part]:
        """Slices of at most `rows` rows over all artifacts of a port, in order, without the committed ones."""
        index, pending, size = 0, list[pa.Table](), 0
        total, seen = self.rows(port), 0
        done = self.committed()

        def cut(table: pa.Table) -> Iterator[Part]:
            nonlocal index, seen
            seen += len(table)
            name = part_name(index, table.column("id").to_pylist())
            index += 1
            if name not in done:
                yield Part(self, name, table)
            self.progress(seen, total, "rows")

        for artifact in self.all(port):
            for batch in artifact.batches(rows=rows):
                pending.append(pa.Table.from_batches([batch]))
                size += len(batch)
                while size >= rows:
                    table = pa.concat_tables(pending, promote_options="default")
                    yield from cut(table.slice(0, rows).combine_chunks())
                    pending, size = [table.slice(rows)], size - rows
        if size:
            yield from cut(pa.concat_tables(pending, promote_options="default").combine_chunks())

    # -- what goes out -----------------------------------------------------------------------------------------------

    def committed(self) -> set[str]:
        """Names of the partitions that are on disk, whole."""
        names = self.store.list("artifacts", self.artifact, "data")
        return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}

    def commit(self, name: str, kept: pa.Table, rejected: pa.Table | None = None, consumed: int = 0) -> None:
        """Commit one partition: the rejected rows first, then the data, whose file is the mark that it is done.

        Args:
            name: unique in this job; `part_name` derives one.
            kept: rows of this job's kind; cast to its schema.
            rejected: rows that did not make it, any columns, with `reason` and optionally `detail` and `failed`.
        """
        if rejected is not None and len(rejected):
            self.store.put(encode(_rejected(rejected)), "artifacts", self.artifact, "rejected", f"{name}.parquet")
        self.store.put(encode(schema.conform(kept, self.gives)), "artifacts", self.artifact, "data", f"{name}.parquet")
        self.emit(
            {"event": "commit", "part": name, "rows": len(kept), "rejected": 0 if rejected is None else len(rejected)}
        )

    @property
    def scratch(self) -> Path:
        """A local folder that survives a kill: checkpoints, caches. Removed when the artifact is finished."""
        return self.store.scratch(self.artifact)

    @property
    def output(self) -> Path:
        """A local folder whose files become the artifact's own when `run` returns."""
        folder = self.scratch / "output"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- what people see ---------------------------------------------------------------------------------------------

    def progress(self, done: int, total: int | None = None, unit: str = "rows", **extra: Any) -> None:
        """Tell how far the work is; thinned to ten a second."""
        now = time.monotonic()
        if now - self._last_progress >= 0.1 or done == total:
            self._last_progress = now
            self.emit({"event": "progress", "done": done, "total": total, "unit": unit, **extra})

    def say(self, text: str) -> None:
        """One line for the person watching."""
        self.emit({"event": "say", "text": text})

    def metric(self, step: int, **values: float) -> None:
        """One point of one or more curves. Kept in scratch; `logs/metrics.parquet` of the artifact in the end.

        A step that is reported twice (a resumed run) keeps its last values.
        """
        with (self.scratch / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.emit({"event": "metric", "step": step, **values})

    def summary(self, **values: Any) -> None:
        """Facts about the result for the manifest, the report and `show` (JSON; part of the digest)."""
        file = self.output / SUMMARY
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **values}, indent=1, sort_keys=True))


def part_name(index: int, ids: Iterable[str]) -> str:
    """The name of a partition: its place and a digest of the ids that went into it."""
    return f"{index:05d}-{xxhash.xxh3_64_hexdigest(chr(10).join(ids).encode())}"


def _false(count: int) -> pa.Array:  # `pa.array` would import pandas
    return pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(bytes(count // 8 + 1))])


def _rejected(table: pa.Table) -> pa.Table:
    if "reason" not in table.column_names:
        raise UserError("rejected rows need a `reason` column")
    for name, default in (("detail", pa.nulls(len(table), pa.string())), ("failed", _false(len(table)))):
        if name not in table.column_names:
            table = table.append_column(name, default)
    return table


def finish(job: Job, facts: dict[str, Any], max_failed: float, timings: dict[str, Any]) -> Artifact:
    """Gather what was committed and write the manifest, last.

    Args:
        facts: what made this artifact (key, stage, inputs, seed, packages).
        max_failed: the ceiling on failed rows, as a share of all rows seen.

    Raises:
        StageFailed: no row came out, or too many failed.
    """
    store, base = job.store, ("artifacts", job.artifact)
    _keep_metrics(job)
    for file in sorted(p for p in job.output.rglob("*") if p.is_file()):
        store.put_file(file, *base, file.relative_to(job.output).as_posix())
    files: dict[str, dict[str, Any]] = {}
    rows = rejected = failed = 0
    reasons: Counter[str] = Counter()
    for name in store.walk(*base):
        if name in (MANIFEST, CARD) or name.startswith("logs/"):
            continue
        with store.fs.open(store.path(*base, name), "rb") as handle:
            files[name] = {
                "bytes": store.size(*base, name),
                "sha256": hashlib.file_digest(handle, "sha256").hexdigest(),
            }
            handle.seek(0)
            if name.startswith("rejected/"):
                part = read_parquet(handle, ["reason", "failed"])
                rejected += len(part)
                failed += sum(part.column("failed").to_pylist())
                reasons.update(part.column("reason").to_pylist())
            elif name.startswith("data/"):
                if name.endswith(".arrow"):
                    reader = pa.ipc.open_file(handle)
                    rows += sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
                else:
                    rows += pq.read_metadata(handle).num_rows
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    where = store.path(*base, "rejected")
    if job.gives in schema.DATASETS and not rows:
        raise StageFailed(
            f"no row came out: {told or 'nothing came in'}." + (f" The rows are in {where}." if told else "")
        )
    if failed > max_failed * (rows + rejected):
        raise StageFailed(
            f"{failed} of {rows + rejected} rows failed, more than the ceiling of {max_failed:.0%} (`max_failed`): "
            f"{told}. The rows are in {where}."
        )
    manifest = {
        **facts,
        "kind": "dataset" if job.gives in schema.DATASETS else "model",
        "schema": job.gives,
        "rows": rows,
        "rejected": dict(sorted(reasons.items())),
        "failed": failed,
        "files": files,
        "digest": digest_json({name: entry["sha256"] for name, entry in files.items()}),
        "summary": json.loads(store.read(*base, SUMMARY)) if SUMMARY in files else {},
        "timings": {**timings, "spent": job.spent} if job.spent else timings,
    }
    log = job.scratch / "stage.log"
    if log.exists():
        store.put(log.read_bytes(), *base, "logs", "stage.log")
    if job.gives in schema.MODELS:
        store.put(card(store, job.artifact, manifest).encode(), *base, CARD)
    store.put(json.dumps(manifest, indent=1).encode(), *base, MANIFEST)
    shutil.rmtree(job.scratch, ignore_errors=True)
    finished = store.get(job.artifact)
    assert finished is not None
    return finished


def _keep_metrics(job: Job) -> None:
    """Turn the metrics that were reported into `logs/metrics.parquet`, one row a step."""
    reported = job.scratch / "metrics.jsonl"
    if not reported.exists():
        return
    steps: dict[int, dict[str, float]] = {}
    for line in reported.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut short by a kill
            point = json.loads(line)
            steps.setdefault(point["step"], {}).update(point)
    names = sorted({name for point in steps.values() for name in point} - {"step"})
    ordered = [steps[step] for step in sorted(steps)]
    table = pa.table({
        "step": pa.array([point["step"] for point in ordered], pa.int64()),
        **{name: pa.array([point.get(name) for point in ordered], pa.float64()) for name in names},
    })  # fmt: skip
    job.store.put(encode(table), "artifacts", job.artifact, "logs", "metrics.parquet")
