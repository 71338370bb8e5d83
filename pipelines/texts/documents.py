"""Documents of several artifacts, one after the other, gone through more than once.

Their texts are nearly all there is to read, and to decompress and decode them takes half as long as to sign them. So the pass
that asks for it keeps the texts of as many files as fit into memory; later passes read no more than the other columns there.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.store.artifact import Artifact
from pipelines.texts.columns import Array, column, strings, texts_of

BATCH_ROWS = 10_000
BATCH_BYTES = 4 << 20  # small ones are decoded four times as fast: their memory is used again
BLOCK = 32 << 20


class Documents:
    """Documents, numbered from 0 in the order of `artifacts`.

    Args:
        memory: bytes of texts that may be kept.
    """

    def __init__(self, artifacts: list[Artifact], memory: int = 0) -> None:
        self.artifacts = artifacts
        self._arena = _Arena(memory)
        self._texts: dict[tuple[str, str], pa.ChunkedArray] = {}  # by artifact and file

    @property
    def rows(self) -> int:
        return sum(artifact.rows for artifact in self.artifacts)

    def batches(
        self, columns: list[str] | None = None, size: int = BATCH_BYTES, keep: bool = False, last: bool = False
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Stream rows: (number of the first, batch). Batches hold about `size` bytes at most, if rows are alike.

        Args:
            keep: the texts, which are among the columns, are kept for later passes.
            last: texts that are kept are given up file by file.
        """
        at = 0
        for artifact in self.artifacts:
            packed = sum(artifact.manifest["files"][name]["bytes"] for name in artifact.parts()) if artifact.rows else 0
            rows = min(max(int(size * artifact.rows / max(4 * packed, 1)), 16), BATCH_ROWS)
            for part in artifact.parts():
                texts = (self._texts.pop if last else self._texts.get)((artifact.id, part), None)
                copies: list[pa.Array] = []
                with artifact.parquet(part) as file:
                    for batch in _read(file, columns, rows, texts):
                        yield at, batch
                        at += len(batch)
                        # afterwards, so that who asked finds the batch in the processor's cache
                        if keep and texts is None and (copy := self._arena.copy(batch.column("text"))) is not None:
                            copies.append(copy)
                    if copies and sum(map(len, copies)) == file.metadata.num_rows:
                        self._texts[artifact.id, part] = pa.chunked_array(copies)
                        pa.default_memory_pool().release_unused()  # decoding took about as much as this file's texts

    def ids_of(self, documents: Array) -> pa.Array:
        """The ids of these documents (sorted numbers)."""
        ids: list[pa.Array] = [strings([])]
        for start, batch in self.batches(["id"]):
            low, high = np.searchsorted(documents, [start, start + len(batch)])
            if high > low:
                ids.append(batch.column("id").take(column(documents[low:high].astype(np.int64) - start)))
        return pa.concat_arrays(ids)


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


class _Arena:
    """Memory for texts, in huge pages: to provide it in small ones takes the kernel as long as decoding takes Arrow."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._block = memoryview(b"")

    def copy(self, texts: pa.Array) -> pa.Array | None:
        """A copy of a column of strings; None, and from then on, if there is no room for it."""
        source = texts_of(texts)
        begin, end = int(source.offsets[0]), int(source.offsets[-1])
        room = self._room(end - begin + 4 * len(source.offsets)) if texts.type == pa.string() else None
        if room is None or texts.null_count:
            self._left = 0
            return None
        # Offsets, too: many short texts have more of them, and between what is freed again they would hold it back.
        offsets = np.frombuffer(room, np.int32, len(source.offsets))
        np.subtract(source.offsets, begin, out=offsets, casting="unsafe")
        text = room[offsets.nbytes :]
        text[:] = memoryview(cast(Any, source.data))[begin:end]
        return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(text))

    def _room(self, size: int) -> memoryview | None:
        self._left -= size
        if self._left < 0:
            return None
        if size > len(self._block):
            block = mmap.mmap(-1, max(BLOCK, size), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):  # no huge pages on this system
                block.madvise(mmap.MADV_HUGEPAGE)
            self._block = memoryview(block)
        room, rest = self._block[:size], -size % 8  # so that offsets begin where an int32 may
        self._block = self._block[size + rest :]
        return room


def trim() -> None:
    """Give freed memory back to the system between two phases, so that the second one's peak does not stand on what the
    first one left: glibc keeps pages above which something still lives, or may soon."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
