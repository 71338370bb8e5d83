"""What rows promise: ids that stand once, and parents that stand in what the artifact was made of.

Ids are compared whole. Parents are looked for among all rows of all that an artifact rests on, which is read once, a batch at a
time; of an artifact of more rows than `ALL_ROWS` a sample's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from engine.store.artifact import Artifact
from engine.store.schema import DATASETS

ALL_ROWS = 200_000  # whose parents are looked for one and all: about a second
EXACT_ROWS = 5_000_000  # whose ids are compared as they are: half a gigabyte
compute: Any = pc  # its functions are made at import, where no type checker sees them


def repeated_id(artifact: Artifact) -> str | None:
    """An id that stands twice in an artifact's rows, or is missing; None where all is well."""
    if artifact.rows > EXACT_ROWS:
        return _repeated_hash(artifact)
    columns = [artifact.read_table(name, ["id"]).column("id") for name in artifact.parts()]
    ids = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    if ids.null_count:
        return f"{ids.null_count:,} rows have no id"
    if compute.count_distinct(ids).as_py() == len(ids):
        return None
    counts = ids.value_counts()
    twice = counts.filter(compute.greater(counts.field("counts"), 1))
    return f"{len(twice):,} ids stand in several rows, {twice[0]['values'].as_py()} among them"


def _repeated_hash(artifact: Artifact) -> str | None:
    """The same by hashes of 64 bits, eight bytes a row; ids whose hashes are equal are then looked at themselves."""
    import numpy as np
    import polars as pl

    def columns() -> Iterator[pl.Series]:
        for name in artifact.parts():
            yield cast(pl.Series, pl.from_arrow(artifact.read_table(name, ["id"]).column("id")))

    hashes = np.sort(np.concatenate([column.hash().to_numpy() for column in columns()]))
    equal = pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    if not len(equal):
        return None
    ids = pl.concat([column.filter(column.hash().is_in(equal)) for column in columns()])
    twice = ids.filter(ids.is_duplicated()).unique(maintain_order=True)
    return f"{len(twice):,} ids stand in several rows, {twice[0]} among them" if len(twice) else None


def lost_parents(artifact: Artifact, ancestors: list[Artifact]) -> tuple[list[str], bool]:
    """(ids of parents that stand in nothing that the artifact was made of, whether those of all rows were looked for).

    Args:
        ancestors: all that it rests on. Rows that came in from outside may name parents that nobody here knows.
    """
    every = -(-artifact.rows // ALL_ROWS)
    wanted = _distinct(_parents(artifact, every))
    # A row may be made of an earlier one of its own artifact, and keeps its parents in a stage that only sifts.
    for one in [artifact, *ancestors]:
        for found in _ids(one):
            if not len(wanted):
                return [], every <= 1
            wanted = wanted.filter(compute.invert(compute.is_in(wanted, value_set=found)))
        if one is not artifact and not one.manifest["inputs"]:
            for found in _parents(one, 1):
                wanted = wanted.filter(compute.invert(compute.is_in(wanted, value_set=found)))
    return wanted.to_pylist(), every <= 1


def _distinct(arrays: Iterator[pa.Array]) -> pa.Array:
    whole = pa.chunked_array(list(arrays), pa.string())
    return whole.unique().drop_null() if len(whole) else pa.array([], pa.string())


def _parents(artifact: Artifact, every: int) -> Iterator[pa.Array]:
    """The parents of every such row."""
    if artifact.kind not in DATASETS:
        return
    at = 0
    for batch in artifact.batches(["parents"], rows=50_000):
        column = batch.column(0)
        if every > 1:
            column = column.take(pa.array(range(-at % every, len(batch), every), pa.int64()))
        at += len(batch)
        yield compute.list_flatten(column)


def _ids(artifact: Artifact) -> Iterator[pa.Array]:
    """The ids of an artifact's rows, and of those that did not make it."""
    if artifact.kind in DATASETS:
        for batch in artifact.batches(["id"], rows=50_000):
            yield batch.column(0)
    for name in artifact.rejected_parts():
        with artifact.parquet(name) as file:
            if "id" in file.schema_arrow.names:
                column = file.read(columns=["id"], use_threads=False).column("id").combine_chunks()
                yield column if column.type == pa.string() else column.cast(pa.string())
