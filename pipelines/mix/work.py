"""Mixing: how often each row is taken, and rows put into their places beyond memory."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from engine.stage.job import Job, part_name
from engine.store.schema import row_id
from pipelines.mix.stage import Mix
from pipelines.texts.columns import Array, numbers

PART_ROWS = 10_000


def mix(stage: Mix, job: Job) -> None:
    sources = job.inputs["documents"]
    sizes = {label: _sizes(job, label, stage.unit) for label in sources}
    totals = {label: int(size.sum()) for label, (_, size) in sizes.items()}
    wanted = stage.shares(totals)
    copies: dict[str, Array] = {}
    for label, (keys, size) in sizes.items():
        copies[label] = take(keys, size, wanted[label])
    counts = {label: int(count.sum()) for label, count in copies.items()}
    _write(stage, job, copies, sum(counts.values()))
    taken = {label: int((copies[label] * size).sum()) for label, (_, size) in sizes.items()}
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


def _sizes(job: Job, label: str, unit: str) -> tuple[Array, Array]:
    """A key for each row of a source (uniform in [0, 2**64), decided by the seed and the id), and its size."""
    keys: list[Array] = []
    sizes: list[Array] = []
    seed = job.derive("take")
    for batch in job.inputs["documents"][label].batches(columns=["id", "text"]):
        keys.append(_keys(batch.column("id").to_pylist(), seed))
        size = pc.call_function("binary_length", [batch.column("text")]) if unit == "bytes" else None
        sizes.append(np.ones(len(batch), np.int64) if size is None else size.to_numpy().astype(np.int64))
    empty = np.zeros(0, np.int64)
    return np.concatenate(keys or [empty.astype(np.uint64)]), np.concatenate(sizes or [empty])


def _rows(job: Job, copies: dict[str, Array]) -> Iterator[tuple[pa.Table, Array]]:
    """The rows of the mix, unshuffled, with a key for the place of each: copies of ids are told apart by number."""
    met: dict[bytes, int] = {}  # id -> how often it has been taken
    seed = job.derive("place")
    for label, artifact in job.inputs["documents"].items():
        most = int(copies[label].max(initial=0))
        for epoch in range(most):
            at = 0
            for batch in artifact.batches():
                mask = copies[label][at : at + len(batch)] > epoch
                at += len(batch)
                if not mask.any():
                    continue
                table = pa.Table.from_batches([batch]).filter(pa.array(mask))
                ids: list[str] = table.column("id").to_pylist()
                parents: list[list[str] | None] = table.column("parents").to_pylist()
                for i, identity in enumerate(ids):
                    digest = hashlib.blake2b(identity.encode(), digest_size=16).digest()
                    number = met.get(digest, 0)
                    met[digest] = number + 1
                    if number:
                        ids[i], parents[i] = row_id("Document", identity, "copy", number), [identity]
                table = table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))
                at_parents = table.schema.get_field_index("parents")
                table = table.set_column(at_parents, "parents", pa.array(parents, pa.list_(pa.string())))
                yield table, _keys(ids, seed)


def _write(stage: Mix, job: Job, copies: dict[str, Array], total: int) -> None:
    done = job.committed()
    places = _curriculum(job, copies, total, stage.curriculum, stage.shuffle) if stage.curriculum else None
    if not stage.shuffle and places is None:
        for index, (table, _) in enumerate(_rows(job, copies)):
            name = part_name(index, table.column("id").to_pylist())
            if name not in done:
                job.commit(name, table)
            job.progress(min((index + 1) * PART_ROWS, total), total)
        return
    # Beyond memory: rows go to a bucket by the top of their key; each bucket is then sorted by itstage.
    count = -(-total // PART_ROWS)
    folder = job.scratch / "buckets"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    spill = _Spill(folder, max(count, 1))
    at = 0
    for table, keys in _rows(job, copies):
        spill.add(table, keys if places is None else places[at : at + len(table)])
        at += len(table)
    for index, table in enumerate(spill.sorted()):
        name = part_name(index, table.column("id").to_pylist())
        if name not in done:
            job.commit(name, table)
        job.progress(min((index + 1) * PART_ROWS, total), total)
    shutil.rmtree(folder, ignore_errors=True)


def _curriculum(job: Job, copies: dict[str, Array], total: int, curriculum: str, shuffle: bool) -> Array:
    """A key for the place of each row of the mix, in [0, 2**64): its rank by what `curriculum` names."""
    field = curriculum.removeprefix("-")
    values, shuffled = np.zeros(total), np.zeros(total, np.uint64)
    at = 0
    for table, keys in _rows(job, copies):
        place = slice(at, at + len(table))
        if field == "length":
            values[place] = pc.call_function("binary_length", [table.column("text")]).to_numpy()
        else:
            values[place] = numbers(table, field, "curriculum")
        shuffled[place] = keys
        at += len(table)
    if curriculum.startswith("-"):
        values = -values
    order = np.lexsort((shuffled if shuffle else np.arange(total), values))  # NaN is last
    places = np.empty(total, np.uint64)
    places[order] = np.arange(total, dtype=np.uint64) * np.uint64((1 << 64) // max(total, 1))
    return places


class _Spill:
    """Buckets of rows on disk, by key; memory holds at most `HELD` bytes of rows that are not yet written."""

    HELD = 128 << 20

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.held: list[tuple[pa.Table, Array]] = []
        self.size = 0
        self.flushes = 0

    def add(self, table: pa.Table, keys: Array) -> None:
        self.held.append((table, keys))
        self.size += table.nbytes
        if self.size >= self.HELD:
            self.flush()

    def flush(self) -> None:
        if not self.held:
            return
        table = pa.concat_tables([t for t, _ in self.held], promote_options="default")
        keys = np.concatenate([k for _, k in self.held])
        table = table.append_column("__key", pa.array(keys, pa.uint64()))
        # floor(key * count / 2**64), without leaving 64 bits
        bucket = ((keys >> np.uint64(32)) * np.uint64(self.count)) >> np.uint64(32)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(self.count), side="right")
        start = 0
        for index, end in enumerate(ends):
            if end > start:
                rows = table.take(pa.array(order[start:end]))
                path = str(self.folder / f"{index:06d}-{self.flushes:06d}.arrow")
                with pa.ipc.new_file(path, rows.schema) as writer:
                    writer.write_table(rows)
            start = end
        self.flushes += 1
        self.held, self.size = [], 0

    def sorted(self) -> Iterator[pa.Table]:
        """The buckets in order, each sorted by key and id; empty ones are left out."""
        self.flush()
        for index in range(self.count):
            files = sorted(self.folder.glob(f"{index:06d}-*.arrow"))
            if files:
                tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
                table = pa.concat_tables(tables, promote_options="default")
                yield table.sort_by([("__key", "ascending"), ("id", "ascending")]).drop_columns("__key")


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
