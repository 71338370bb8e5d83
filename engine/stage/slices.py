"""How the rows of a stage's inputs are cut: by their number alone, whoever works on them and wherever that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from engine.store.artifact import Artifact
from engine.store.schema import united

SLICE_BYTES = 8 << 20  # on disk: a fifth to a third of their texts


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `start + rows` of one file of an artifact, the `artifact`th of its port."""

    artifact: int
    file: str
    start: int
    rows: int


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a port: the `index`th slice of it, which begins at row `start` of all its artifacts together.

    Attributes:
        bytes: about how many they take on disk.
    """

    port: str
    index: int
    start: int
    pieces: tuple[Piece, ...]
    bytes: int = 0

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


def cut(
    port: str, artifacts: list[Artifact], rows: int, only: int | None = None, size: int | None = None
) -> list[Slice]:
    """Slices of `rows` rows (the last one of fewer) over all artifacts of a port, in order. The manifest tells how many rows a file has, or the
    file its footer, which whoever reads the rows compares with its digest.

    Args:
        only: the number of the one artifact to cut, if not all.
        size: bytes on disk that a slice has at most, or one row, by what a row of its file has on average.
    """
    slices: list[Slice] = []
    pieces: list[Piece] = []
    held = start = 0
    taken_bytes = 0.0

    def close() -> None:
        nonlocal pieces, held, start, taken_bytes
        slices.append(Slice(port, len(slices), start, tuple(pieces), int(taken_bytes)))
        pieces, start, held, taken_bytes = [], start + held, 0, 0.0

    for number, artifact in enumerate(artifacts):
        for name, count in row_counts(artifact) if only in (None, number) else ():
            at = 0
            row = artifact.manifest["files"][name]["bytes"] / max(count, 1)
            while at < count:
                room = rows - held if size is None else min(rows - held, int((size - taken_bytes) / max(row, 1e-9)))
                if room < 1 and held:
                    close()
                    continue
                taken = min(max(room, 1), count - at)
                pieces.append(Piece(number, name, at, taken))
                taken_bytes += row * taken
                at, held = at + taken, held + taken
                if held == rows:
                    close()
    if held:
        close()
    return slices


def row_counts(artifact: Artifact) -> list[tuple[str, int]]:
    """The data files of an artifact, each with its number of rows."""
    names = artifact.parts()
    if len(names) == 1:
        return [(names[0], artifact.rows)]
    return [(name, _row_count(artifact, name)) for name in names]


def _row_count(artifact: Artifact, name: str) -> int:
    entry = artifact.manifest["files"][name]
    if "rows" in entry:
        return entry["rows"]
    with artifact.store.fs.open(artifact.store.path("artifacts", artifact.id, name), "rb") as file:
        return pq.read_metadata(file).num_rows  # a manifest of before does not tell


def read(part: Slice, artifacts: list[Artifact], columns: list[str] | None = None) -> pa.Table:
    """The rows of a slice, in one chunk a column."""
    tables: list[pa.Table] = []
    for piece in part.pieces:
        with artifacts[piece.artifact].parquet(piece.file) as file:
            tables += _rows(file, piece, columns)
    return pa.concat_tables(united(tables), promote_options="default").combine_chunks()


def _rows(file: pq.ParquetFile, piece: Piece, columns: list[str] | None) -> Iterable[pa.Table]:
    at, end = 0, piece.start + piece.rows
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        low, high = max(piece.start - at, 0), min(end - at, count)
        if low < high:
            yield file.read_row_group(group, columns=columns, use_threads=False).slice(low, high - low)
        at += count
