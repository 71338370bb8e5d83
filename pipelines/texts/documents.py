"""Documents of several artifacts, one after the other, gone through more than once."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.store.artifact import Artifact
from pipelines.texts.columns import Array, column, strings
from pipelines.texts.kept_texts import KeptTexts, Place, Shelf

BATCH_ROWS = 10_000
BATCH_BYTES = 4 << 20  # small ones are decoded four times as fast: their memory is used again
File = tuple[int, str]  # the number of an artifact, and the name of a file of its
Places = Mapping[File, Place]


class Documents:
    """The documents of some files, numbered from 0 in the order of the files.

    Args:
        artifacts: what the files' numbers refer to.
        files: all of the artifacts' if None.
        kept: where texts may be that an earlier pass left in memory.
        places: where they are, by file.
    """

    def __init__(
        self, artifacts: list[Artifact], files: Sequence[File] | None = None, kept: KeptTexts | None = None, places: Places | None = None
    ) -> None:  # fmt: skip
        self.artifacts = artifacts
        self.files = files if files is not None else [(i, name) for i, a in enumerate(artifacts) for name in _parts(a)]
        self._kept, self._places = kept, places or {}
        self._packed = [sum(a.manifest["files"][name]["bytes"] for name in _parts(a)) for a in artifacts]

    def batches(
        self, columns: list[str] | None = None, size: int = BATCH_BYTES, wanted: Array | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Stream rows: (number of the first, batch). A batch is of one file, and holds about `size` bytes at most, if rows are alike.

        Args:
            wanted: sorted numbers; files with none of these are left out.
        """
        at = 0
        for file, parquet in self._opened():
            rows = parquet.metadata.num_rows
            if wanted is None or np.diff(np.searchsorted(wanted, [at, at + rows]))[0]:
                place = self._places.get(file) if columns is None or "text" in columns else None
                texts = self._kept.texts(place) if place and self._kept else None
                for batch in _read(parquet, columns, self._rows(file, size), texts):
                    yield at, batch
                    at += len(batch)
            else:
                at += rows

    def by_file(
        self, columns: list[str], shelf: Shelf | None = None, places: dict[File, Place] | None = None
    ) -> Iterator[tuple[File, pa.RecordBatch]]:
        """All rows: (file, batch).

        Args:
            shelf: texts, which are among the columns, are kept here as long as there is room.
            places: where the texts of each file are, if all of them were kept; written.
        """
        for file, parquet in self._opened():
            for batch in _read(parquet, columns, self._rows(file, BATCH_BYTES), None):
                yield file, batch
                if shelf:  # afterwards, so that who asked finds the batch in the processor's cache
                    shelf.put(batch.column("text"))
            if shelf and places is not None and (place := shelf.close(parquet.metadata.num_rows)):
                places[file] = place

    def ids_of(self, documents: Array) -> pa.Array:
        """The ids of these documents (sorted numbers)."""
        ids: list[pa.Array] = [strings([])]
        for start, batch in self.batches(["id"], wanted=documents):
            low, high = np.searchsorted(documents, [start, start + len(batch)])
            if high > low:
                ids.append(batch.column("id").take(column(documents[low:high].astype(np.int64) - start)))
        return pa.concat_arrays(ids)

    def batch_count(self, files: Sequence[File], rows: Sequence[int], size: int = BATCH_BYTES) -> int:
        """How many batches `batches` yields of files with so many rows."""
        return sum(-(-count // self._rows(file, size)) for file, count in zip(files, rows, strict=True))

    def _rows(self, file: File, size: int) -> int:
        """Rows of a batch, by the artifact's manifest."""
        rows = size * self.artifacts[file[0]].rows / max(4 * self._packed[file[0]], 1)
        return min(max(int(rows), 16), BATCH_ROWS)

    def _opened(self) -> Iterator[tuple[File, pq.ParquetFile]]:
        for number, name in self.files:
            with self.artifacts[number].parquet(name) as parquet:
                yield (number, name), parquet


def _parts(artifact: Artifact) -> list[str]:
    return artifact.parts() if artifact.rows else []


def _read(
    file: pq.ParquetFile, columns: list[str] | None, rows: int, texts: pa.ChunkedArray | None
) -> Iterator[pa.RecordBatch]:
    """The rows of a file; `texts`, if given, are those of all its rows and are not read."""
    schema: pa.Schema = file.schema_arrow
    names = [name for name in schema.names if columns is None or name in columns]
    place = names.index("text") if texts is not None and "text" in names else None
    if place is not None:
        names.pop(place)
    at = 0
    for batch in file.iter_batches(rows, columns=names, use_threads=False):
        if texts is not None and place is not None:
            text = texts.slice(at, len(batch))
            text = text.chunk(0) if text.num_chunks == 1 else text.combine_chunks()
            batch = batch.add_column(place, schema.field("text"), text)
            at += len(batch)
        yield batch


def trim() -> None:
    """Give freed memory back to the system between two phases, so that the second one's peak does not stand on what the
    first one left: glibc keeps pages above which something still lives, or may soon."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
