"""Arrow columns from numbers and strings without pandas, numbers out of the columns of rows, and texts as bytes.

`pyarrow.array` asks pandas whether its argument is a series, and imports it to ask: .35 CPU seconds, a tenth of what
deduplicating half a gigabyte takes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]


def column(values: np.ndarray[Any, np.dtype[Any]]) -> pa.Array:
    """A column of numbers or booleans."""
    if values.dtype == bool:
        return pa.Array.from_buffers(
            pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))]
        )
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def strings(values: list[str]) -> pa.Array:
    """A column of strings, less than 2 GB of them."""
    texts = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))


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


@dataclass(frozen=True)
class Texts:
    """A column of texts as Arrow holds it: text i is `data[offsets[i]:offsets[i + 1]]`."""

    data: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def text(self, i: int) -> tuple[Array, int, int]:
        """(data, begin, end) of text i."""
        return self.data, int(self.offsets[i]), int(self.offsets[i + 1])

    def longest(self) -> int:
        """Bytes of the longest text."""
        return int(np.diff(self.offsets).max(initial=0))


def texts_of(column: pa.Array | pa.ChunkedArray) -> Texts:
    """View a string column without a copy (chunks are joined; null is the empty text)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if column.null_count:
        column = column.fill_null("")
    large = pa.types.is_large_string(column.type)
    _, offsets, data = column.buffers()
    if not len(column):
        return Texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    at = np.frombuffer(offsets, np.int64 if large else np.int32)[column.offset : column.offset + len(column) + 1]
    bytes_ = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return Texts(bytes_, at.astype(np.int64, copy=False))
