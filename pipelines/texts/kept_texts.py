"""Texts that a pass over documents leaves in memory for later passes, in whichever process of this machine these are done.

Texts are nearly all there is to read, and to decompress and decode them takes half as long as to sign them. They lie in a file without
a name, in memory, which the process that gives out the tasks holds open and the others reach by its descriptor; it goes with that
process. Where there is no such file (another machine, another system) the texts are read anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipelines.texts.columns import Array, texts_of

TOKEN = 16  # bytes that begin the file, drawn: a descriptor of this number may be another file elsewhere
REGION, SPAN = 1 << 36, 1 << 62  # of a shelf and of the file; only what is written takes memory


@dataclass(frozen=True)
class Place:
    """Where the texts of a file of documents are: at `begin`, batch by batch, of so many rows and so many bytes each."""

    begin: int
    batches: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(_room(rows, bytes_) for rows, bytes_ in self.batches)


class KeptTexts:
    """The file in memory. A copy of this object in another process of the machine reaches the same one.

    Args:
        size: bytes of texts that may be kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._token = os.urandom(TOKEN)
        self._path = ""
        self._file: int | None = None
        if size and hasattr(os, "memfd_create"):
            self._file = os.memfd_create("flywheel-texts")
            os.ftruncate(self._file, SPAN)
            os.pwrite(self._file, self._token, 0)
            self._path = f"/proc/{os.getpid()}/fd/{self._file}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def opened(self) -> int | None:
        """The file's descriptor in this process, if it is to be had here."""
        if self._file is None and self._path:
            with contextlib.suppress(OSError):
                file = os.open(self._path, os.O_RDWR)
                if os.pread(file, TOKEN, 0) == self._token:
                    self._file = file
                else:
                    os.close(file)
            self._path = self._path if self._file is not None else ""
        return self._file

    def shelf(self, number: int, size: int) -> Shelf:
        """Room for `size` bytes of texts, the `number`th; each belongs to one writer."""
        return Shelf(self.opened(), (number + 1) * REGION, size)

    def texts(self, place: Place) -> pa.ChunkedArray | None:
        """The texts of a file of documents; views of the memory."""
        file = self.opened()
        if file is None:
            return None
        mapped = mmap.mmap(file, place.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=place.begin)
        memory, at = pa.py_buffer(mapped), 0
        chunks: list[pa.Array] = []
        for rows, bytes_ in place.batches:
            offsets = memory.slice(at, 4 * (rows + 1))
            chunks.append(pa.StringArray.from_buffers(rows, offsets, memory.slice(at + offsets.size, bytes_)))
            at += _room(rows, bytes_)
        return pa.chunked_array(chunks, pa.string())

    def give_up(self, place: Place) -> None:
        """Free the memory of the texts of a file of documents."""
        if (file := self.opened()) is not None:
            with mmap.mmap(file, place.size, offset=place.begin) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)


class Shelf:
    """What one task keeps, file after file, until there is no room left."""

    def __init__(self, file: int | None, begin: int, size: int) -> None:
        self._file, self._at, self._left = file, begin, size if file is not None else 0
        self._batches: list[tuple[int, int]] = []

    @property
    def full(self) -> bool:
        return self._left <= 0

    def put(self, column: pa.Array) -> None:
        """Keep the texts of a batch; if there is no room for them, those of this file are given up, and nothing is kept from then on."""
        if self.full or self._file is None:
            return
        texts = texts_of(column)
        begin, end = int(texts.offsets[0]), int(texts.offsets[-1])
        self._left -= end - begin + 4 * len(texts.offsets)
        if self._left < 0 or column.type != pa.string() or column.null_count:
            self._left = 0
            return
        offsets = np.subtract(texts.offsets, begin, dtype=np.int32, casting="unsafe")
        _write(self._file, offsets, self._end)
        _write(self._file, texts.data[begin:end], self._end + offsets.nbytes)
        self._batches.append((len(texts), end - begin))

    def close(self, rows: int) -> Place | None:
        """End a file of so many rows: where its texts are, if all of them were kept."""
        batches, self._batches = tuple(self._batches), []
        if not batches or sum(count for count, _ in batches) != rows:
            return None
        place = Place(self._at, batches)
        self._at += place.size + -place.size % mmap.PAGESIZE
        return place

    @property
    def _end(self) -> int:
        return self._at + sum(_room(*batch) for batch in self._batches)


def _room(rows: int, bytes_: int) -> int:
    """Bytes of a batch: its offsets, its texts, and so many that the next one's offsets begin where an int32 may."""
    size = 4 * (rows + 1) + bytes_
    return size + -size % 8


def _write(file: int, values: Array, at: int) -> None:
    data = memoryview(cast(Any, values)).cast("B") if values.size else b""
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
