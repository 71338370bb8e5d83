"""Parquet as the store writes and reads it: every page has a checksum (CRC-32), which is compared when the page is read."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Columns whose values are hardly ever equal: to look for equal ones takes as long as to compress them.
UNLIKE = ("id", "text")
# Of a row group at most: whoever reads some rows of a part reads the groups they are in. Not in bytes, which depend on how a table came about.
GROUP_ROWS = 10_000


def encode(table: pa.Table) -> bytes:
    """A table as Parquet bytes (zstd, pages with checksums). The same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(None), buffer, compression="zstd", compression_level=1, write_page_checksum=True,
        row_group_size=GROUP_ROWS, use_dictionary=[  # pyright: ignore[reportArgumentType]  # names are taken too
            name for name in table.column_names if name not in UNLIKE],
    )  # fmt: skip
    return buffer.getvalue()


def open_parquet(file: Any) -> pq.ParquetFile:
    """A Parquet file, by a path or opened, to read with `use_threads=False`.

    Without Arrow's threads, neither those that decode nor those that read ahead: where a process ends while they start (`show` on
    a busy machine), pyarrow 26 aborts it, with everything printed already. With both, that struck one process in five.
    """
    return pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)


def read_parquet(file: Any, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, or these columns of it in this order."""
    table = open_parquet(file).read(columns=columns, use_threads=False)
    return table.select(columns) if columns else table
