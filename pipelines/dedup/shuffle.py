"""What the tasks of one phase leave for those of the next: a file a task, each table in it cut up by who is to read it.

A file carries a digest of itself, and what its task found out. So a stage that goes on after a kill does the tasks again whose file is
missing or is not what was written, and no others.

    8 bytes        XXH3 of all that follows
    8 bytes        length of the header
    header         JSON: facts; for each table where its parts begin, its columns and where these are cut
    tables         part by part; in a part column by column, the widest items first, filled up to 8 bytes
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xxhash

from engine.stage.job import Job
from pipelines.texts.columns import Array

HEAD = 1 << 14  # bytes that are read first, in the hope that the header is among them
ALIGN = 8
FILLING = np.zeros(ALIGN, np.uint8)
Columns = dict[str, Array]


@dataclass(frozen=True)
class Table:
    """Columns of a table, and where they are cut.

    Attributes:
        columns: (rows,) or (rows, width) each; those in `ragged` have a length of their own.
        cuts: (parts + 1,) rows: part p is `cuts[p]` to `cuts[p + 1]`.
        ragged: (parts + 1,) for columns that are cut elsewhere.
    """

    columns: Columns
    cuts: Array
    ragged: Mapping[str, Array]

    @staticmethod
    def whole(**columns: Array) -> Table:
        """A table in one part; its columns may differ in length."""
        ends = {name: np.array([0, len(column)]) for name, column in columns.items()}
        return Table(columns, next(iter(ends.values())), ends)

    @staticmethod
    def split(parts: Array, count: int, **columns: Array) -> Table:
        """Rows by the part each belongs to; in a part they stay in order."""
        if count > 1:
            # NumPy sorts small integers by radix
            order = np.argsort(parts.astype(np.uint16) if count <= 1 << 16 else parts, kind="stable")
            columns = {name: column[order] for name, column in columns.items()}
        return Table(columns, np.append(0, np.cumsum(np.bincount(parts, minlength=count))), {})

    @staticmethod
    def sorted_by(numbers: Array, begins: Array, **columns: Array) -> Table:
        """Rows in the order of `numbers`, cut where these pass the beginnings of ranges: (parts + 1,)."""
        if len(numbers) and (numbers[1:] < numbers[:-1]).any():
            order = np.argsort(numbers, kind="stable")
            numbers, columns = numbers[order], {name: column[order] for name, column in columns.items()}
        return Table(columns, np.searchsorted(numbers, begins), {})


class Shuffle:
    """The files of a stage's phases, in a folder of its exchange."""

    def __init__(self, job: Job, folder: str) -> None:
        self._exchange = job.exchange
        self._local = job.store.local
        self.folder = folder

    def put(self, name: str, facts: dict[str, Any], **tables: Table) -> dict[str, Any]:
        """Write what a task made; returns its facts (JSON)."""
        header: dict[str, Any] = {"facts": facts, "tables": {}}
        pieces: list[Array] = []
        size = 0
        for label, table in tables.items():
            columns = sorted(table.columns.items(), key=lambda item: -item[1].itemsize)
            begins = [size]
            for part in range(len(table.cuts) - 1):
                for key, column in columns:
                    low, high = table.ragged.get(key, table.cuts)[part : part + 2].tolist()
                    pieces.append(column[low:high])
                    size += pieces[-1].nbytes
                pieces.append(FILLING[: -size % ALIGN])
                size += -size % ALIGN
                begins.append(size)
            told = {
                key: [column.dtype.str, 0 if column.ndim == 1 else column.shape[1], *_own_cuts(table, key)]
                for key, column in columns
            }
            header["tables"][label] = {"begins": begins, "cuts": table.cuts.tolist(), "columns": told}
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % ALIGN)
        data = bytearray(2 * ALIGN + len(head) + size)
        data[ALIGN : 2 * ALIGN] = len(head).to_bytes(ALIGN, "little")
        at = 2 * ALIGN + len(head)
        data[2 * ALIGN : at] = head
        for piece in pieces:
            if piece.size:
                data[at : at + piece.nbytes] = memoryview(cast(Any, np.ascontiguousarray(piece))).cast("B")
                at += piece.nbytes
        data[:ALIGN] = xxhash.xxh3_64_digest(memoryview(data)[ALIGN:])
        self._exchange.put(self._place(name), memoryview(data), kept=False)
        return facts

    def facts(self, name: str) -> dict[str, Any] | None:
        """What a task found out that was done before a kill; None if it was not, or its file is no longer whole."""
        if not self._exchange.exists(self._place(name)):
            return None
        if self._local:  # an object store looks after its objects itself
            data = self._exchange.array(self._place(name), np.uint8)
            if xxhash.xxh3_64_digest(memoryview(cast(Any, data))[ALIGN:]) != data[:ALIGN].tobytes():
                return None
        return self._header(name)[0]["facts"]

    def part(self, name: str, table: str, part: int = 0) -> Columns:
        """The columns of one part of a table; of a local file they are views of it, mapped."""
        header, start = self._header(name)
        found = header["tables"][table]
        begin, end = found["begins"][part : part + 2]
        data = np.asarray(self._exchange.array(self._place(name), np.uint8, start + begin, start + end))
        columns: Columns = {}
        at = 0
        for key, (kind, width, *own) in found["columns"].items():
            low, high = (own[0] if own else found["cuts"])[part : part + 2]
            size = np.dtype(kind).itemsize * (high - low) * max(width, 1)
            values = data[at : at + size].view(kind)
            columns[key] = values.reshape(-1, width) if width else values
            at += size
        return columns

    def gather(self, names: Iterable[str], table: str, part: int = 0) -> Columns:
        """The rows of one part of a table of several files, one after the other."""
        return joined(self.part(name, table, part) for name in names)

    def _header(self, name: str) -> tuple[dict[str, Any], int]:
        """The header of a file, and where the tables begin."""
        head = self._exchange.get(self._place(name), 0, HEAD)
        size = int.from_bytes(head[ALIGN : 2 * ALIGN], "little")
        start = 2 * ALIGN + size
        text = (
            head[2 * ALIGN : start] if start <= len(head) else self._exchange.get(self._place(name), 2 * ALIGN, start)
        )
        return json.loads(text), start

    def _place(self, name: str) -> str:
        return f"{self.folder}/{name}"


def joined(parts: Iterable[Columns]) -> Columns:
    """Tables, one after the other."""
    every = list(parts)
    return every[0] if len(every) == 1 else {key: np.concatenate([part[key] for part in every]) for key in every[0]}


def stretches(begins: Array, ends: Array, values: Array) -> Iterator[Array]:
    """Each `values[begins[i]:ends[i]]`."""
    yield from (values[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True))


def ends_of(lengths: Array) -> Array:
    """(N + 1,) where stretches of these lengths begin and end that lie end to end."""
    return np.append(0, np.cumsum(lengths, dtype=np.int64))


def _own_cuts(table: Table, key: str) -> list[list[int]]:
    return [table.ragged[key].tolist()] if key in table.ragged else []
