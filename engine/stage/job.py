"""A job: one stage being carried out. What a stage's `run` is handed.

Work is cut into partitions; each is committed as one file under a name derived from what went in. A killed job repeats
at most the partition in flight, and because seeds are derived, it ends with the same bytes.

A map over rows::

    for part in job.parts("documents", rows=10_000):   # committed ones are skipped
        kept, removed = clean(part.table)
        part.commit(kept, rejected=removed)

The same on all cores, or all nodes, with a worker that each process makes once::

    class Cleaner:
        def __init__(self, job, rules):
            self.job, self.rules = job, compiled(rules)

        def __call__(self, part: Slice) -> int:
            if (mine := self.job.part(part)) is not None:   # None: committed before a kill
                mine.commit(*clean(mine.table, self.rules))
            return part.rows

    for rows in job.spread(Cleaner, job.slices("documents"), stage.rules):   # in the order of the slices
        ...

A model::

    trainer.save(job.output)     # a local folder; its files become the artifact's when `run` returns
    job.scratch                  # a local folder for checkpoints that survives a kill
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from engine import seeds
from engine.errors import Damaged, StageFailed
from engine.redaction import redacted, redacted_json
from engine.stage import slices
from engine.stage.exchange import Exchange
from engine.stage.executor import Effort, Executor, Here, Work
from engine.stage.slices import Slice
from engine.store.artifact import Artifact
from engine.store.journal import Journal
from engine.store.known_digests import digest_of
from engine.store.schema import united
from engine.store.store import Store
from engine.store.whole_file import whole_file
from engine.store.writer import ArtifactWriter, Contents

SUMMARY, SPENT = "summary.json", "spent.json"
WRITTEN = "written.txt"
STAYS = (SPENT, "spec.json", "stage.log", "failed.json")  # of the scratch folder, where a stage starts over
STRAGGLERS = 5  # tasks that took the longest are told one by one
AMOUNTS = ("tokens_in", "tokens_out", "cost")
Emit = Callable[[dict[str, Any]], None]


@dataclass
class Part:
    """A slice of an input that has not been committed yet."""

    job: Job
    name: str
    table: pa.Table

    def commit(self, kept: pa.Table, rejected: pa.Table | None = None) -> None:
        """Write the rows made from this slice, and those that did not make it (see `Job.commit`)."""
        self.job.commit(self.name, kept, rejected, consumed=len(self.table))

    def skip(self) -> None:
        """What is made of it was committed, under another name."""
        self.job.consume(len(self.table))


@dataclass
class Job:
    """Inputs, a place to commit rows or files, derived seeds and progress.

    Attributes:
        inputs: port -> label -> artifact; the label is the name in the recipe.
        gives: the kind of dataset or model being made.
        base: the folder of the recipe, for paths in its configuration.
        options: how to run, never what to make (`{"wait": bool}`).
        sources: digests of the files outside the store that the stage reads, as its key was made of them.
        executor: where the tasks of `spread` are done.
        efforts: what tasks took that were done in other processes.
    """

    store: Store
    artifact: str
    gives: str
    inputs: dict[str, dict[str, Artifact]]
    seed: int
    base: str = "."
    emit: Emit = lambda event: None
    options: dict[str, Any] = field(default_factory=lambda: {})
    sources: Mapping[str, str] = field(default_factory=lambda: {})
    executor: Executor = field(default_factory=Here)
    efforts: list[Effort] = field(default_factory=lambda: [])
    _workers: set[str] = field(default_factory=lambda: set[str]())
    _last_progress: float = 0.0
    _consumed: int = 0  # rows of what `parts` gives that were committed
    _given: int = 0
    _spending: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def writer(self) -> ArtifactWriter:
        return ArtifactWriter(self.store, self.artifact, Journal(self.scratch / WRITTEN))

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock and what was read from files: training hands its job to processes of its own."""
        ours = ("_spending", "spent", "writer", "exchange", "emit", "executor", "efforts", "_workers", "_done")
        return {name: value for name, value in self.__dict__.items() if name not in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(
            state, _spending=threading.Lock(), emit=_unheard, executor=Here(), efforts=[], _workers=set()
        )

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
        self._consumed, self._given = 0, self.rows(port)
        done = self.committed()

        def cut(table: pa.Table) -> Iterator[Part]:
            nonlocal index
            name = part_name(index, table.column("id").to_pylist())
            index += 1
            if name in done:
                self.consume(len(table))
            else:
                yield Part(self, name, table)

        for artifact in self.all(port):
            for batch in artifact.batches(rows=rows):
                pending.append(pa.Table.from_batches([batch]))
                size += len(batch)
                while size >= rows:
                    table = pa.concat_tables(united(pending), promote_options="default")
                    yield from cut(table.slice(0, rows).combine_chunks())
                    pending, size = [table.slice(rows)], size - rows
        if size:
            yield from cut(pa.concat_tables(united(pending), promote_options="default").combine_chunks())

    def consume(self, rows: int) -> None:
        """So many more rows of what `parts` gives are done with."""
        self._consumed += rows
        if self._given:
            self.progress(self._consumed, self._given, "rows")

    # -- in many processes -------------------------------------------------------------------------------------------

    def slices(self, port: str, rows: int = 10_000, label: str | None = None, size: int | None = None) -> list[Slice]:
        """The slices that `parts` cuts, to be worked on in any order; of all artifacts of the port, or of one alone.

        Args:
            size: bytes on disk that a slice has at most: of long texts, so that there is enough to spread.
        """
        only = None if label is None else list(self.inputs[port]).index(label)
        return slices.cut(port, self.all(port), rows, only, size)

    def table(self, part: Slice, columns: list[str] | None = None) -> pa.Table:
        """The rows of a slice."""
        return slices.read(part, self.all(part.port), columns)

    def part(self, part: Slice) -> Part | None:
        """A slice with its rows, to be committed; None if it was."""
        if self._done and part_name(part.index, self.table(part, ["id"]).column("id").to_pylist()) in self._done:
            return None
        table = self.table(part)
        return Part(self, part_name(part.index, table.column("id").to_pylist()), table)

    @cached_property
    def _done(self) -> set[str]:
        """What was committed when this process began; each slice is worked on once."""
        return self.committed()

    def spread(
        self,
        make: Callable[..., Callable[[Any], Any]],
        tasks: Iterable[Any],
        *common: Any,
        width: int | None = None,
        size: int | None = None,
    ) -> Iterator[Any]:
        """Have tasks done wherever there is room; what the worker returned for each, in their order.

        Args:
            make: a class or function of a module. `make(job, *common)` gives the worker, once in every process that takes part.
            tasks: anything that can be pickled; few are drawn ahead.
            width: at most so many at once.
            size: bytes on disk that the tasks look at, all together: little work is done here. If None, what the inputs have.

        Raises:
            what a worker raised. StageFailed: a process was lost.
        """
        for done in self.executor.map(Work(make, self, common, self._size if size is None else size), tasks, width):
            for event in done.events:
                self.emit(event)
            if done.effort:
                self.efforts.append(done.effort)
                self._tell_workers(done.effort.worker)
            yield done.result

    @property
    def _size(self) -> int | None:
        """Bytes of the rows of all inputs; None where they have none."""
        given = [artifact for port in self.inputs for artifact in self.all(port)]
        return sum(a.manifest["files"][name]["bytes"] for a in given for name in a.parts()) or None

    def _tell_workers(self, worker: str) -> None:
        """Tell of a process that had not done anything yet."""
        if worker in self._workers:
            return
        self._workers.add(worker)
        nodes = {name.rpartition(":")[0] for name in self._workers}
        dashboard = getattr(self.executor, "dashboard", None)
        more = {"dashboard": dashboard} if dashboard else {}
        self.emit({"event": "workers", "workers": len(self._workers), "nodes": len(nodes), **more})

    @cached_property
    def exchange(self) -> Exchange:
        """Files that all processes of this stage reach while it is under way."""
        return Exchange(self.store, self.artifact, self.keep)

    def told_efforts(self) -> dict[str, dict[str, float]]:
        """By worker: how many tasks it did, and what they took (for the timings, outside the digest)."""
        told: dict[str, dict[str, float]] = {}
        for one in self.efforts:
            mine = told.setdefault(one.worker, {"tasks": 0, "wall_s": 0.0, "cpu_s": 0.0, "peak_rss_mb": 0.0})
            mine["tasks"] += 1
            mine["wall_s"] += one.wall_s
            mine["cpu_s"] += one.cpu_s
            mine["peak_rss_mb"] = max(mine["peak_rss_mb"], one.peak_rss_mb)
        return {name: {what: round(value, 3) for what, value in mine.items()} for name, mine in told.items()}

    def told_tasks(self) -> dict[str, Any]:
        """How many tasks were done in other processes, how long the one in the middle took, and those that took more than twice as long."""
        if not self.efforts:
            return {}
        median = statistics.median(one.wall_s for one in self.efforts)
        slow = sorted(
            ((i, one) for i, one in enumerate(self.efforts) if one.wall_s > 2 * median), key=lambda p: -p[1].wall_s
        )
        stragglers = [{"task": i, "worker": one.worker, "wall_s": round(one.wall_s, 3)} for i, one in slow[:STRAGGLERS]]
        return {"done": len(self.efforts), "median_s": round(median, 3), "stragglers": stragglers}

    # -- what goes out -----------------------------------------------------------------------------------------------

    def committed(self) -> set[str]:
        """Names of the partitions that are on disk, whole."""
        return self.writer.parts()

    def commit(self, name: str, kept: pa.Table, rejected: pa.Table | None = None, consumed: int = 0) -> None:
        """Commit one partition: the rejected rows first, then the data, whose file is the mark that it is done.

        Args:
            name: unique in this job; `part_name` derives one.
            kept: rows of this job's kind; cast to its schema.
            rejected: rows that did not make it, any columns, with `reason` and optionally `detail` and `failed`.
            consumed: rows of the input (`parts`) that went into it, for the progress.
        """
        if rejected is not None and len(rejected):
            self.reject(name, rejected)
        self.writer.put_part(name, kept, self.gives)
        self.emit(
            {"event": "commit", "part": name, "rows": len(kept), "rejected": 0 if rejected is None else len(rejected)}
        )
        if consumed:
            self.consume(consumed)

    def copy_part(self, name: str, artifact: Artifact) -> None:
        """Commit a partition of another artifact of this job's kind under the same name, byte for byte."""
        self.copy_file(f"data/{name}.parquet", artifact)

    def copy_file(self, name: str, artifact: Artifact) -> None:
        """Commit a file of another artifact under the same name, byte for byte."""
        self.writer.put_bytes(name, artifact.read_file(name))

    def reject(self, name: str, rejected: pa.Table) -> None:
        """Keep rows that did not make it where nothing is committed beside them: what a model was not trained on."""
        self.writer.put_rejected(name, _without_secrets(rejected))

    def read_part(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A partition of this job that was committed."""
        return self.writer.read_part(name, columns)

    @contextlib.contextmanager
    def keep(self, file: Path, *, shared: bool = False) -> Generator[Path]:
        """A path to write a file of the scratch folder to, which then appears whole (`whole_file`). What is kept this way and is
        another file when the stage goes on after a kill has the stage start over.

        Args:
            shared: others may be writing the same file at the same time.
        """
        with whole_file(file, shared=shared) as partial:
            yield partial
            self.note(file, partial)

    def note(self, place: Path, partial: Path | None = None) -> None:
        """Have a file or folder of the scratch folder looked at when the stage goes on after a kill, as `keep` has.

        Args:
            partial: where its bytes are now, if not in its place.
        """
        assert self.writer.journal is not None
        now = partial or place
        for file in [now] if now.is_file() else sorted(f for f in now.rglob("*") if f.is_file()):
            name = (place / file.relative_to(now)).relative_to(self.scratch)
            self.writer.journal.note(f"scratch/{name}", digest_of(file, "xxh3"))

    def resume(self) -> None:
        """Look at what was committed and kept before a kill, and start over where it is not what was written."""
        assert self.writer.journal is not None
        self.store.clear_begun(self.artifact)
        damaged = self.writer.damage()
        for name, digests in self.writer.journal.noted().items():
            file = self.scratch / name.removeprefix("scratch/")
            if name.startswith("scratch/") and file.is_file() and digest_of(file, "xxh3") not in digests:
                damaged.append(name)
        if damaged:
            self.say(f"{', '.join(damaged[:3])} is damaged: what was begun is made anew")
            self.start_over()

    def contents(self) -> Contents:
        """All that was committed.

        Raises:
            StageFailed: it is not what was written; it is taken away, so that the next run makes it anew.
        """
        try:
            return self.writer.contents()
        except Damaged as error:
            self.start_over()
            raise StageFailed(f"{error} Nothing was made of it; run again, and it is made anew.") from None

    def start_over(self) -> None:
        """Take away all that was committed, and what was kept for it; what was said and spent stays."""
        self.writer.discard()
        self.exchange.clear()
        for entry in self.scratch.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in STAYS:
                entry.unlink()

    def write_log(self, name: str, data: bytes) -> None:
        """Keep a file beside the result that may differ from run to run (times, curves): no part of the digest."""
        self.writer.put_log(name, data)

    @property
    def scratch(self) -> Path:
        """A local folder that survives a kill: checkpoints, caches. Removed when the artifact is finished."""
        return self.store.scratch(self.artifact)

    @cached_property
    def spent(self) -> dict[str, dict[str, Any]]:
        """What was spent so far, by whoever answers (`spend`). Kept with the timings, outside the digest."""
        try:
            told = json.loads((self.scratch / SPENT).read_text())
            return {str(name): {part: told[name].get(part, 0) for part in AMOUNTS} for name in told}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError):
            self.say(f"{self.scratch / SPENT} is damaged: what was spent before is not counted")
            return {}

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

    def spend(self, name: str, **amounts: float) -> None:
        """Note what one who answers has spent in all (`tokens_in`, `tokens_out`, `cost`), and tell the sum over all of them."""
        with self._spending:  # backends tell it from threads of their own
            self.spent[redacted(name)] = amounts
            with whole_file(
                self.scratch / SPENT, lasting=False
            ) as partial:  # a run that goes on after a kill goes on counting
                partial.write_text(json.dumps(self.spent))
            told = {part: sum(one.get(part, 0) for one in self.spent.values()) for part in AMOUNTS}
        event = {"event": "tokens", "in": told["tokens_in"], "out": told["tokens_out"]}
        self.emit({**event, "cost": round(told["cost"], 4)} if told["cost"] else event)

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
        with self.keep(file) as partial:
            partial.write_text(json.dumps({**known, **redacted_json(values)}, indent=1, sort_keys=True))


def _unheard(event: dict[str, Any]) -> None: ...


def part_name(index: int, ids: Iterable[str], digits: int = 5) -> str:
    """The name of a partition: its place, in so many digits at least, and a digest of the ids that went into it."""
    return f"{index:0{digits}d}-{xxhash.xxh3_64_hexdigest(chr(10).join(ids).encode())}"


def _without_secrets(rejected: pa.Table) -> pa.Table:
    """Rows that failed, as what servers and libraries said of them may be kept; the others' details are ours."""
    if not {"detail", "failed"} <= set(rejected.column_names):
        return rejected
    told = list(zip(rejected["failed"].to_pylist(), rejected["detail"].to_pylist(), strict=True))
    clean = [redacted(detail) if failed and detail else detail for failed, detail in told]
    if clean == [detail for _, detail in told]:
        return rejected
    return rejected.set_column(rejected.column_names.index("detail"), "detail", pa.array(clean, pa.string()))
