"""`mix`: several sources of documents -> one, in wanted proportions, shuffled. The counts are exact and stated."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from engine.errors import UserError, nearest
from engine.stage.job import Job, part_name
from engine.stage.stage import Port, Stage, port
from engine.store.schema import row_id

PART_ROWS = 10_000


class Mix(Stage):
    """Take from each source its share; repeat a source no more often than `epochs` allows.

    A row that is taken again gets an id of its own, with the row as its parent. Which rows make up the last, partial
    epoch and where each row ends up is decided by a digest of the seed and the row's id, so neither depends on the
    order of the inputs' rows.
    """

    takes: ClassVar[dict[str, Port]] = {"documents": port("Document", many=True, labelled=True)}
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    narrows: ClassVar[bool] = True
    random: ClassVar[bool] = True

    weights: dict[str, float] | None = Field(
        None,
        description="Source -> share of the mix, by the names the recipe gives the inputs. None: all rows of each.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Without weights: shares in proportion to size ** (1 / temperature)."
    )
    unit: Literal["documents", "bytes"] = Field("documents", description="What shares and `size` count.")
    size: int | None = Field(
        None, ge=1, description="Size of the mix; None: as large as `epochs` allows in these proportions."
    )
    epochs: float | dict[str, float] = Field(1.0, description="How often a source's rows may be taken, at most.")
    caps: dict[str, int] = Field(
        default_factory=lambda: {}, description="Source -> how much to take of it at most, in units."
    )
    curriculum: str | None = Field(
        None,
        description="Order by this, rising: `length` (bytes), or a column or field of `metadata` with a number; with `-` "
        "before it, falling. Rows without one come last; equal ones are shuffled.",
    )
    shuffle: bool = Field(True, description="Else: source after source, each in its order, epoch after epoch.")

    def run(self, job: Job) -> None:
        sources = job.inputs["documents"]
        sizes = {label: self._sizes(job, label) for label in sources}
        totals = {label: int(size.sum()) for label, (_, size) in sizes.items()}
        wanted = self.shares(totals)
        copies: dict[str, np.ndarray[Any, Any]] = {}
        for label, (keys, size) in sizes.items():
            copies[label] = take(keys, size, wanted[label])
        counts = {label: int(count.sum()) for label, count in copies.items()}
        self._write(job, copies, sum(counts.values()))
        taken = {label: int((copies[label] * size).sum()) for label, (_, size) in sizes.items()}
        whole = sum(taken.values())
        job.summary(
            unit=self.unit,
            sources={
                label: {
                    "documents": counts[label],
                    "distinct": int((copies[label] > 0).sum()),
                    "available": len(copies[label]),
                    self.unit: taken[label],
                    "share": taken[label] / max(whole, 1),
                    "epochs": taken[label] / max(totals[label], 1),
                }
                for label in sources
            },
            documents=sum(counts.values()),
        )
        if self.size is not None and whole < self.size:
            job.summary(asked=self.size, short=self.size - whole)
            job.say(f"{whole} {self.unit} instead of the {self.size} asked for: `epochs` allows no more repetition.")

    def shares(self, totals: dict[str, int]) -> dict[str, float]:
        """How much to take of each source, in units.

        Args:
            totals: source -> size, in units.

        Raises:
            UserError: weights or epochs name no source, or leave one out.
        """
        caps = self.epochs if isinstance(self.epochs, dict) else dict.fromkeys(totals, self.epochs)
        for field, given in (("weights", self.weights), ("epochs", caps), ("caps", self.caps)):
            for label, value in (given or {}).items():
                if label not in totals:
                    raise UserError(
                        f"`{field}` names `{label}`, which is no input of this stage.{nearest(label, totals)} "
                        f"Inputs: {', '.join(totals)}."
                    )
                if not value >= 0:
                    raise UserError(f"`{field}.{label}` should be 0 or more, found {value}.")
        room = {label: total * caps.get(label, 1.0) for label, total in totals.items()}
        room = {label: min(most, self.caps.get(label, most)) for label, most in room.items()}
        if self.weights is not None:
            if missing := [label for label in totals if label not in self.weights]:
                raise UserError(f"`weights` leaves out {', '.join(missing)}; give 0 to take nothing of it.")
            weights = self.weights
        elif self.temperature is not None:
            weights = {label: total ** (1 / self.temperature) for label, total in totals.items()}
        elif self.size is not None:
            weights = room
        else:
            return room
        whole = sum(weights.values())
        if not whole:
            raise UserError("`weights` are all 0: nothing to mix.")
        weights = {label: weight / whole for label, weight in weights.items()}
        if self.size is None:
            scale = min(room[label] / weight for label, weight in weights.items() if weight)
        else:
            scale = float(self.size)
        return {label: min(room[label], weight * scale) for label, weight in weights.items()}

    def _sizes(self, job: Job, label: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """A key for each row of a source (uniform in [0, 2**64), decided by the seed and the id), and its size."""
        keys: list[np.ndarray[Any, Any]] = []
        sizes: list[np.ndarray[Any, Any]] = []
        seed = job.derive("take")
        for batch in job.inputs["documents"][label].batches(columns=["id", "text"]):
            keys.append(_keys(batch.column("id").to_pylist(), seed))
            size = pc.call_function("binary_length", [batch.column("text")]) if self.unit == "bytes" else None
            sizes.append(np.ones(len(batch), np.int64) if size is None else size.to_numpy().astype(np.int64))
        empty = np.zeros(0, np.int64)
        return np.concatenate(keys or [empty.astype(np.uint64)]), np.concatenate(sizes or [empty])

    def _rows(
        self, job: Job, copies: dict[str, np.ndarray[Any, Any]]
    ) -> Iterator[tuple[pa.Table, np.ndarray[Any, Any]]]:
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

    def _write(self, job: Job, copies: dict[str, np.ndarray[Any, Any]], total: int) -> None:
        done = job.committed()
        places = self._curriculum(job, copies, total) if self.curriculum else None
        if not self.shuffle and places is None:
            for index, (table, _) in enumerate(self._rows(job, copies)):
                name = part_name(index, table.column("id").to_pylist())
                if name not in done:
                    job.commit(name, table)
                job.progress(min((index + 1) * PART_ROWS, total), total)
            return
        # Beyond memory: rows go to a bucket by the top of their key; each bucket is then sorted by itself.
        count = -(-total // PART_ROWS)
        folder = job.scratch / "buckets"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        spill = _Spill(folder, max(count, 1))
        at = 0
        for table, keys in self._rows(job, copies):
            spill.add(table, keys if places is None else places[at : at + len(table)])
            at += len(table)
        for index, table in enumerate(spill.sorted()):
            name = part_name(index, table.column("id").to_pylist())
            if name not in done:
                job.commit(name, table)
            job.progress(min((index + 1) * PART_ROWS, total), total)
        shutil.rmtree(folder, ignore_errors=True)

    def _curriculum(self, job: Job, copies: dict[str, np.ndarray[Any, Any]], total: int) -> np.ndarray[Any, Any]:
        """A key for the place of each row of the mix, in [0, 2**64): its rank by what `curriculum` names."""
        field = (self.curriculum or "").removeprefix("-")
        values, shuffled = np.zeros(total), np.zeros(total, np.uint64)
        at = 0
        for table, keys in self._rows(job, copies):
            place = slice(at, at + len(table))
            if field == "length":
                values[place] = pc.call_function("binary_length", [table.column("text")]).to_numpy()
            else:
                values[place] = numbers(table, field, "curriculum")
            shuffled[place] = keys
            at += len(table)
        if self.curriculum and self.curriculum.startswith("-"):
            values = -values
        order = np.lexsort((shuffled if self.shuffle else np.arange(total), values))  # NaN is last
        places = np.empty(total, np.uint64)
        places[order] = np.arange(total, dtype=np.uint64) * np.uint64((1 << 64) // max(total, 1))
        return places


def numbers(table: pa.Table | pa.RecordBatch, field: str, asked: str) -> np.ndarray[Any, Any]:
    """A number of each row, from a column or a field of `metadata`; NaN where there is none.

    Args:
        asked: the option that names the field, for the error.

    Raises:
        UserError: it is something else.
    """
    values: list[Any]
    if field in table.schema.names:
        values = table.column(field).to_pylist()
    else:
        cells: list[str | None] = table.column("metadata").to_pylist()
        values = [json.loads(cell).get(field) if cell else None for cell in cells]
    for value in values:
        if value is not None and not isinstance(value, int | float):
            raise UserError(f"`{asked}: {field}` should name numbers, found {value!r}.")
    return np.array([np.nan if value is None else float(value) for value in values])


class _Spill:
    """Buckets of rows on disk, by key; memory holds at most `HELD` bytes of rows that are not yet written."""

    HELD = 128 << 20

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.held: list[tuple[pa.Table, np.ndarray[Any, Any]]] = []
        self.size = 0
        self.flushes = 0

    def add(self, table: pa.Table, keys: np.ndarray[Any, Any]) -> None:
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


def _keys(ids: list[str], seed: int) -> np.ndarray[Any, Any]:
    return np.array([xxhash.xxh3_64_intdigest(identity.encode(), seed=seed) for identity in ids], dtype=np.uint64)


def take(keys: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], wanted: float) -> np.ndarray[Any, Any]:
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
