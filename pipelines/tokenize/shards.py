"""Token shards: writing blocks as Arrow IPC, and reading them memory-mapped.

A shard folder holds `data/*.arrow` (and `validation/*.arrow`): uncompressed Arrow IPC files of one record batch with the
columns `id`, `parents` (the documents in the block), `tokens` (FixedSizeList of uint16 or uint32) and `starts` (the
offsets in the block at which a document begins). `tokens` of a file is one flat stretch of memory, so a row is a view.

Shapes: B rows, T tokens of a block.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]


def write_shard(
    path: Path, ids: list[str], parents: list[list[str]], tokens_BT: Array, starts: list[list[int]]
) -> None:
    """Write one file, whole or not at all."""
    block = tokens_BT.shape[1]
    batch = pa.record_batch({
        "id": pa.array(ids, pa.string()),
        "parents": pa.array(parents, pa.list_(pa.string())),
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens_BT.reshape(-1)), block),
        "starts": pa.array(starts, pa.list_(pa.int32())),
    })  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with pa.ipc.new_file(str(partial), batch.schema) as writer:
        writer.write_batch(batch)
    partial.replace(path)


class Shards:
    """The blocks of a shard folder, by number, without copies.

    Args:
        folder: an artifact of kind TokenBlock (`artifact.path`).
        split: "data" for training, "validation" for held-out documents.

    Raises:
        UserError: there is no such shard in the folder, or the blocks differ in length.
    """

    def __init__(self, folder: str | Path, split: str = "data") -> None:
        self.folder = Path(folder)
        self.split = split
        self.files = sorted((self.folder / split).glob("*.arrow"))
        if not self.files:
            raise UserError(f"{self.folder} holds no token shards ({split}/*.arrow); `tokenize` makes them.")
        self._batches = [_read(file) for file in self.files]
        self.views = [_tokens(batch) for batch in self._batches]
        self._ends = np.cumsum([len(view) for view in self.views]).tolist()
        blocks = {view.shape[1] for view in self.views}
        if len(blocks) > 1:
            raise UserError(f"the shards in {self.folder}/{split} have blocks of different lengths: {sorted(blocks)}.")
        self.block: int = blocks.pop()
        self.dtype: np.dtype[Any] = self.views[0].dtype

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Array:
        """A view of one block (T), or of a slice of blocks (B, T): a view if they lie in one file, else a copy."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and start < stop:
                file, row = self._place(start)
                if stop <= self._ends[file]:
                    return self.views[file][row : row + stop - start]
            return self.tokens_BT(np.arange(start, stop, step))
        file, row = self._place(int(index))
        return self.views[file][row]

    def tokens_BT(self, rows: Sequence[int] | Array, out: Array | None = None) -> Array:
        """Gather blocks by number into one (B, T) array: `out` if given (it also converts, e.g. to int64)."""
        if out is None:
            out = np.empty((len(rows), self.block), self.dtype)
        for i, index in enumerate(rows):
            file, row = self._place(int(index))
            out[i] = self.views[file][row]
        return out

    def batches(self, rows: int) -> Iterator[Array]:
        """All blocks in order, in views of at most `rows` of them."""
        for view in self.views:
            for start in range(0, len(view), rows):
                yield view[start : start + rows]

    def starts(self, index: int) -> list[int]:
        """The offsets in a block at which a document begins; what stands before the first goes on from the last block."""
        file, row = self._place(index)
        return self._batches[file].column("starts")[row].as_py()

    def parents(self, index: int) -> list[str]:
        """The ids of the documents in a block, in order."""
        file, row = self._place(index)
        return self._batches[file].column("parents")[row].as_py()

    @property
    def validation(self) -> Shards | None:
        """The held-out documents of the same folder, if any were held out."""
        has = any((self.folder / "validation").glob("*.arrow"))
        return Shards(self.folder, "validation") if has else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `tokenize` said of the shards: tokens, bytes, vocab_size, waste."""
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def vocab_size(self) -> int:
        return int(self.summary["vocab_size"])

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        index %= len(self)
        file = bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)


def _read(file: Path) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a whole Arrow IPC file: {error}.") from error
    if reader.num_record_batches != 1:
        raise UserError(f"{file} holds {reader.num_record_batches} record batches, expected 1.")
    return reader.get_batch(0)


def _tokens(batch: pa.RecordBatch) -> Array:
    column = batch.column("tokens")
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(batch), column.type.list_size)
