"""Parquet and Arrow, decoded in a process of their own (`engine.reader.apart`): checked, and in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute

from engine.reader.sources import Range, SourceFile, unpacked_limit
from engine.store.parquet import open_parquet

pc: Any = pyarrow.compute  # its functions are made when it is imported
PIECE = 32 << 20  # bytes of the rows that are handed on together
ROWS = 1000
A_ROW = 16  # bytes that even an empty row counts


def row_groups(file: SourceFile) -> Iterator[Any]:
    """Of every row group of a Parquet file: its rows, and its bytes in the file."""
    with file.open() as raw:
        facts = open_parquet(raw).metadata
        for group in range(facts.num_row_groups):
            of_group = facts.row_group(group)
            sizes = [of_group.column(i).total_compressed_size for i in range(of_group.num_columns)]
            yield [of_group.num_rows, sum(sizes)]


def parquet(file: SourceFile, most: int, within: Range | None = None) -> Iterator[Any]:
    """The names of a Parquet file's columns, then record batches; `[what is lost, its first row, the first after it]` for a damaged row group.

    Args:
        within: these row groups alone.

    Raises:
        ValueError: it unpacks to more than a file of its size may.
    """
    with file.open() as raw:
        reader = open_parquet(raw)
        yield list(reader.schema_arrow.names)
        account = _Account(file.size, most)
        account.add(0, reader.metadata.num_rows)
        account = _Account(within.size if within else file.size, most)
        first = within.first if within else 0
        for group in range(within.begin, within.end) if within else range(reader.num_row_groups):
            facts = reader.metadata.row_group(group)
            index, size = first, facts.num_rows
            rows = max(1, min(ROWS, PIECE * size // max(1, facts.total_byte_size)))
            try:
                for batch in reader.iter_batches(rows, row_groups=[group], use_threads=False):
                    for piece in _pieces(batch):
                        account.add(piece.nbytes, len(piece))
                        yield piece
                        index += len(piece)
            except (OSError, MemoryError, pa.ArrowException) as error:
                lost = f"row group {group}: {first + size - index} rows from row {index} on"
                yield [f"{lost}: {type(error).__name__}: {error}", index, first + size]
            first += size


def arrow(file: SourceFile, most: int) -> Iterator[Any]:
    """As `parquet`, of Arrow's IPC, a stream or a file: what `datasets` saves."""
    with file.open() as raw:
        source = pa.PythonFile(raw, mode="r")
        if raw.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches: Iterable[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            raw.seek(0)
            batches = reader = pa.ipc.open_stream(source)
        yield list(reader.schema.names)
        account = _Account(file.size, most)
        for batch in batches:
            sound(batch)
            for start in range(0, len(batch), ROWS):
                for piece in _pieces(batch.slice(start, ROWS)):
                    account.add(piece.nbytes, len(piece))
                    yield piece


def sound(batch: pa.RecordBatch) -> None:
    """
    Raises:
        pyarrow.ArrowInvalid: lengths and offsets in it lead out of it. Whether its texts are UTF-8 is asked row by row, elsewhere.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
            column.view(_bytes(column.type)).validate(full=True)


def _bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes for texts."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_bytes(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes(field.type)) for field in kind])
    return kind


class _Account:
    """What was unpacked of a file so far."""

    def __init__(self, size: int, most: int) -> None:
        self.size, self.limit, self.most = 0, unpacked_limit(size, most), most

    def add(self, size: int, rows: int) -> None:
        self.size += size + A_ROW * rows
        if self.size > self.limit:
            raise ValueError(
                f"it unpacks to more than {self.limit:,} bytes, too much for a file of its size (`max_file_bytes`)"
            )


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch as smaller ones without encodings that make much of little: dictionaries, runs, views of the same bytes."""
    kinds = [field.type for field in batch.schema]
    if any(_shares(child) for kind in kinds for child in _children(kind)):
        for i in range(len(batch)):  # deep inside: one at a time, once it is seen that its values fit here
            row = batch.slice(i, 1)
            row.to_pylist()
            yield row
        return
    widest = sum(_widest(column) for column in batch.columns if _shares(column.type))
    rows = max(1, min(len(batch), PIECE // (widest + 1)))
    for start in range(0, len(batch), rows):
        part = batch.slice(start, rows)
        plain = [_plain(column) if _shares(column.type) else column for column in part.columns]
        yield from _halves(pa.RecordBatch.from_arrays(plain, names=list(part.schema.names)))


def _halves(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if len(batch) > 1 and batch.nbytes > PIECE:
        middle = len(batch) // 2
        yield from _halves(batch.slice(0, middle))
        yield from _halves(batch.slice(middle))
    else:
        yield batch


def _shares(kind: pa.DataType) -> bool:
    """Whether several values of an array of this type may be the same bytes."""
    asked: list[Callable[[pa.DataType], bool]] = [
        pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_string_view, pa.types.is_binary_view,
        pa.types.is_list_view, pa.types.is_large_list_view,
    ]  # fmt: skip
    return any(is_one(kind) for is_one in asked)


def _children(kind: pa.DataType) -> Iterator[pa.DataType]:
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        yield kind
    for i in range(kind.num_fields):
        child = kind.field(i).type
        yield child
        yield from _children(child)
    if pa.types.is_dictionary(kind) and pa.types.is_nested(kind.value_type):
        yield kind


def _widest(column: Any) -> int:
    """Bytes of the longest value."""
    kind = column.type
    held = (
        column.dictionary
        if pa.types.is_dictionary(kind)
        else column.values
        if pa.types.is_run_end_encoded(kind)
        else column
    )
    if pa.types.is_string_view(held.type) or pa.types.is_binary_view(held.type):
        return max((len(value.as_buffer() or b"") for value in held if value.is_valid), default=0)
    try:
        return int(pc.max(pc.binary_length(held)).as_py() or 0)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return 16


def _plain(column: Any) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.dictionary_decode()
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_decode(column)
    return column.cast(pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary())
