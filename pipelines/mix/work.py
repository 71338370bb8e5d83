"""Mixing: how often each row is taken, and rows put into their places beyond memory."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from engine.stage.job import Job, part_name
from engine.stage.slices import Piece, Slice, row_counts
from engine.store.schema import row_id
from pipelines.mix.stage import Mix
from pipelines.texts.columns import Array, numbers

PART_ROWS = 10_000
BATCH_ROWS = 10_000


def mix(stage: Mix, job: Job) -> None:
    sources = job.inputs["documents"]
    batches = _batches(job)
    measured = _measured(job, batches, stage.unit)
    totals = {label: int(rows.sizes.sum()) for label, rows in measured.items()}
    wanted = stage.shares(totals)
    copies = {label: take(rows.keys, rows.sizes, wanted[label]) for label, rows in measured.items()}
    counts = {label: int(count.sum()) for label, count in copies.items()}
    taken = {label: int((copies[label] * rows.sizes).sum()) for label, rows in measured.items()}
    _write(stage, job, _takes(batches, copies, again(measured, copies)), sum(counts.values()))
    whole = sum(taken.values())
    job.summary(
        unit=stage.unit,
        sources={
            label: {
                "documents": counts[label],
                "distinct": int((copies[label] > 0).sum()),
                "available": len(copies[label]),
                stage.unit: taken[label],
                "share": taken[label] / max(whole, 1),
                "epochs": taken[label] / max(totals[label], 1),
            }
            for label in sources
        },
        documents=sum(counts.values()),
    )
    if stage.size is not None and whole < stage.size:
        job.summary(asked=stage.size, short=stage.size - whole)
        job.say(f"{whole} {stage.unit} instead of the {stage.size} asked for: `epochs` allows no more repetition.")


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of a source, in order.

    Attributes:
        keys: decide which rows a partial epoch takes, uniform in [0, 2**64), by the seed and the id.
        checks: other 64 bits of the ids: rows with equal keys and checks have the same id.
        sizes: in units.
    """

    keys: Array
    checks: Array
    sizes: Array


@dataclass(frozen=True)
class Take:
    """Rows of a batch that an epoch takes.

    Attributes:
        chosen: which, one a row of the batch.
        numbers: place in the batch -> how often its id was taken before, where that is not `epoch`.
        places: a key for the place of each chosen row in the mix; None: what seed and id say.
    """

    batch: Slice
    epoch: int
    chosen: Array
    numbers: dict[int, int]
    places: Array | None = None

    @property
    def rows(self) -> int:
        return int(self.chosen.sum())


def _batches(job: Job) -> dict[str, list[Slice]]:
    """Source -> its rows, cut by file; `start` counts the rows of the source."""
    found: dict[str, list[Slice]] = {}
    for number, (label, artifact) in enumerate(job.inputs["documents"].items()):
        found[label], at = [], 0
        for name, count in row_counts(artifact):
            size = artifact.manifest["files"][name]["bytes"] / max(count, 1)
            for start in range(0, count, BATCH_ROWS):
                rows = min(BATCH_ROWS, count - start)
                piece = Piece(number, name, start, rows)
                found[label].append(Slice("documents", len(found[label]), at + start, (piece,), int(rows * size)))
            at += count
    return found


def _measured(job: Job, batches: dict[str, list[Slice]], unit: str) -> dict[str, Rows]:
    told = job.spread(Measure, (batch for of_source in batches.values() for batch in of_source), unit)
    kinds = (np.uint64, np.uint64, np.int64)
    found: dict[str, Rows] = {}
    for label, of_source in batches.items():
        columns = [np.zeros((3, 0), np.uint64), *(np.stack(next(told)) for _ in of_source)]
        found[label] = Rows(*(row.astype(kind) for row, kind in zip(np.concatenate(columns, 1), kinds, strict=True)))
    return found


class Measure:
    """Gives the keys, checks and sizes of the rows of a batch (`Rows`)."""

    def __init__(self, job: Job, unit: str) -> None:
        self.job, self.unit, self.seed = job, unit, job.derive("take")

    def __call__(self, batch: Slice) -> tuple[Array, Array, Array]:
        table = self.job.table(batch, ["id", "text"] if self.unit == "bytes" else ["id"])
        ids: list[str] = table.column("id").to_pylist()
        size = pc.call_function("binary_length", [table.column("text")]) if self.unit == "bytes" else None
        sizes = np.ones(len(table), np.uint64) if size is None else size.to_numpy().astype(np.uint64)
        return _keys(ids, self.seed), _keys(ids, self.seed ^ 1), sizes


def again(measured: dict[str, Rows], copies: dict[str, Array]) -> dict[str, dict[tuple[int, int], int]]:
    """Source -> (epoch, row) -> how often the row's id was taken before, source after source, epoch after epoch; where it stands in
    one row alone, which is most, that is the epoch, and not told.
    """
    taken = {label: np.flatnonzero(copies[label] > 0) for label in measured}
    keys = np.concatenate([measured[label].keys[rows] for label, rows in taken.items()])
    checks = np.concatenate([measured[label].checks[rows] for label, rows in taken.items()])
    order = np.argsort(keys, kind="stable")
    equal = keys[order][1:] == keys[order][:-1]
    several = np.zeros(len(keys), bool)
    several[order[1:][equal]] = several[order[:-1][equal]] = True
    found: dict[str, dict[tuple[int, int], int]] = {label: {} for label in measured}
    met: defaultdict[tuple[int, int], int] = defaultdict(int)
    at = 0
    for label, rows in taken.items():
        mine = np.flatnonzero(several[at : at + len(rows)])
        ids = list(zip(keys[at + mine].tolist(), checks[at + mine].tolist(), strict=True))
        for epoch in range(int(copies[label].max(initial=0))):
            for row, identity in zip(rows[mine].tolist(), ids, strict=True):
                if copies[label][row] > epoch:
                    found[label][epoch, row] = met[identity]
                    met[identity] += 1
        at += len(rows)
    return found


def _takes(
    batches: dict[str, list[Slice]], copies: dict[str, Array], numbers: dict[str, dict[tuple[int, int], int]]
) -> list[Take]:
    """What is taken, in the order of the mix without a shuffle."""
    takes: list[Take] = []
    for label, of_source in batches.items():
        of_batch: defaultdict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        starts = [batch.start for batch in of_source]
        for (epoch, row), number in numbers[label].items():
            index = int(np.searchsorted(starts, row, side="right")) - 1
            of_batch[epoch, index][row - starts[index]] = number
        for epoch in range(int(copies[label].max(initial=0))):
            for index, batch in enumerate(of_source):
                chosen = copies[label][batch.start : batch.start + batch.rows] > epoch
                if chosen.any():
                    takes.append(Take(batch, epoch, chosen, of_batch.get((epoch, index), {})))
    return takes


class Taker:
    """Reads what is taken of a batch: the rows, and a key for the place of each. Copies of a row are told apart by number."""

    def __init__(self, job: Job) -> None:
        self.job, self.seed = job, job.derive("place")

    def taken(self, take: Take) -> tuple[pa.Table, Array]:
        table = self.job.table(take.batch).filter(pa.array(take.chosen))
        ids: list[str] = table.column("id").to_pylist()
        parents: list[list[str] | None] = table.column("parents").to_pylist()
        for i, place in enumerate(np.flatnonzero(take.chosen).tolist()):
            if number := take.numbers.get(place, take.epoch):
                ids[i], parents[i] = row_id("Document", ids[i], "copy", number), [ids[i]]
        for name, values in (("id", pa.array(ids, pa.string())), ("parents", pa.array(parents, pa.list_(pa.string())))):
            table = table.set_column(table.schema.get_field_index(name), name, values)
        return table, _keys(ids, self.seed) if take.places is None else take.places


class Ranker(Taker):
    """Gives what the curriculum goes by of the rows that are taken of a batch, and their keys."""

    def __init__(self, job: Job, field: str) -> None:
        super().__init__(job)
        self.field = field

    def __call__(self, take: Take) -> tuple[Array, Array]:
        table, keys = self.taken(take)
        if self.field == "length":
            sizes = pc.call_function("binary_length", [table.column("text")])
            return sizes.to_numpy().astype(np.float64), keys
        return numbers(table, self.field, "curriculum"), keys


class Writer(Taker):
    """Commits what is taken of a batch as it is."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.done = job.committed()

    def __call__(self, task: tuple[int, Take]) -> None:
        index, take = task
        table, _ = self.taken(take)
        name = part_name(index, table.column("id").to_pylist())
        if name not in self.done:
            self.job.commit(name, table)


def _write(stage: Mix, job: Job, takes: list[Take], total: int) -> None:
    if stage.curriculum:
        takes = _placed(job, takes, total, stage.curriculum, stage.shuffle)
    if not stage.shuffle and not stage.curriculum:
        for index, _ in enumerate(job.spread(Writer, enumerate(takes))):
            job.progress(min((index + 1) * PART_ROWS, total), total)
        return
    # Beyond memory: rows go to a bucket by the top of their key; each bucket is then sorted by itself.
    count = max(-(-total // PART_ROWS), 1)
    groups = list(_grouped(takes))
    schemas: list[pa.Schema] = []
    filled = np.zeros(count, np.int64)
    for schema, rows in job.spread(_Spill, enumerate(groups), count):
        schemas.append(schema)
        filled += rows
    if not groups:
        return
    schema = pa.unify_schemas(schemas, promote_options="default")
    buckets = enumerate(np.flatnonzero(filled).tolist())
    for index, _ in enumerate(job.spread(_Sorter, buckets, schema, len(groups))):
        job.progress(min((index + 1) * PART_ROWS, total), total)
    job.exchange.drop("buckets")


def _placed(job: Job, takes: list[Take], total: int, curriculum: str, shuffle: bool) -> list[Take]:
    """With a key for the place of each row of the mix, in [0, 2**64): its rank by what `curriculum` names."""
    told = list(job.spread(Ranker, takes, curriculum.removeprefix("-")))
    values = np.concatenate([values for values, _ in told] or [np.zeros(0)])
    shuffled = np.concatenate([keys for _, keys in told] or [np.zeros(0, np.uint64)])
    if curriculum.startswith("-"):
        values = -values
    order = np.lexsort((shuffled if shuffle else np.arange(total), values))  # NaN is last
    places = np.empty(total, np.uint64)
    places[order] = np.arange(total, dtype=np.uint64) * np.uint64((1 << 64) // max(total, 1))
    ends = np.cumsum([take.rows for take in takes], dtype=np.int64).tolist()
    return [replace(take, places=places[end - take.rows : end]) for take, end in zip(takes, ends, strict=True)]


def _grouped(takes: list[Take]) -> Iterator[list[Take]]:
    """Consecutive ones, together at least `_Spill.HELD`."""
    group: list[Take] = []
    size = 0.0
    for take in takes:
        group.append(take)
        size += take.batch.bytes * take.rows / take.batch.rows
        if size >= _Spill.HELD:
            yield group
            group, size = [], 0.0
    if group:
        yield group


class _Spill(Taker):
    """Puts rows into the exchange by bucket: a file of Arrow streams, one after the other, and where each ends.

    Gives the columns there are, and how many rows went into each bucket.
    """

    HELD = 32 << 20  # bytes on disk of what is held at once, about

    def __init__(self, job: Job, count: int) -> None:
        super().__init__(job)
        self.count = count

    def __call__(self, task: tuple[int, list[Take]]) -> tuple[pa.Schema, Array]:
        number, takes = task
        tables, all_keys = zip(*(self.taken(take) for take in takes), strict=True)
        keys = np.concatenate(all_keys)
        table = pa.concat_tables(tables, promote_options="default")
        schema = table.schema
        table = table.append_column("__key", pa.array(keys, pa.uint64()))
        # floor(key * count / 2**64), without leaving 64 bits
        bucket = ((keys >> np.uint64(32)) * np.uint64(self.count)) >> np.uint64(32)
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self.count + 1), side="left")
        table = table.take(pa.array(order)).combine_chunks()
        ends = np.zeros(self.count + 1, np.int64)
        data = io.BytesIO()
        for index in range(self.count):
            if rows := int(bounds[index + 1] - bounds[index]):
                with pa.ipc.new_stream(data, table.schema) as writer:
                    writer.write_table(table.slice(int(bounds[index]), rows))
            ends[index + 1] = data.tell()
        self.job.exchange.put(f"buckets/{number:06d}.rows", data.getbuffer(), kept=False)
        self.job.exchange.put_array(f"buckets/{number:06d}.ends", ends, kept=False)
        return schema, np.diff(bounds)


class _Sorter:
    """Commits a bucket, sorted by key and id.

    Args:
        files: how many hold rows of it.
    """

    def __init__(self, job: Job, schema: pa.Schema, files: int) -> None:
        self.job, self.schema, self.done = job, schema, job.committed()
        self.files = [f"buckets/{number:06d}" for number in range(files)]

    def __call__(self, task: tuple[int, int]) -> None:
        index, bucket = task
        tables = [self.schema.append(pa.field("__key", pa.uint64())).empty_table()]
        for file in self.files:
            begin, end = self.job.exchange.array(f"{file}.ends", np.int64, bucket, bucket + 2).tolist()
            if end > begin:
                with pa.ipc.open_stream(self.job.exchange.get(f"{file}.rows", begin, end)) as reader:
                    tables.append(reader.read_all())
        table = pa.concat_tables(tables, promote_options="default")
        table = table.sort_by([("__key", "ascending"), ("id", "ascending")]).drop_columns("__key")
        name = part_name(index, table.column("id").to_pylist())
        if name not in self.done:
            self.job.commit(name, table)


def _keys(ids: list[str], seed: int) -> Array:
    return np.array([xxhash.xxh3_64_intdigest(identity.encode(), seed=seed) for identity in ids], dtype=np.uint64)


def take(keys: Array, sizes: Array, wanted: float) -> Array:
    """How often to take each row so that the sizes add up to `wanted`: whole epochs, then the rows with the least keys.

    The sum is as near to `wanted` as those rows, in that order, allow; for rows of size 1 it is `round(wanted)`.

    Args:
        keys: one a row; decides which rows the last, partial epoch takes.
        sizes: one a row, in units.

    Returns:
        int64, one a row.
    """
    total = int(sizes.sum())
    if not total:
        return np.zeros(len(keys), np.int64)
    whole = int(wanted // total)
    copies = np.full(len(keys), whole, np.int64)
    rest = wanted - whole * total
    order = np.argsort(keys, kind="stable")
    reached = np.cumsum(sizes[order])
    # Take a row if that brings the sum nearer to what is wanted than leaving it.
    copies[order[reached - sizes[order] / 2 <= rest - 1e-9 * total]] += 1
    return copies
