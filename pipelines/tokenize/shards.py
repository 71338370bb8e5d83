"""Token shards: blocks written as Arrow IPC, read memory-mapped, and the order in which training takes them.

A shard folder holds `data/*.arrow` (and `validation/*.arrow`): uncompressed Arrow IPC files with the columns `id`, `parents`
(the documents in the block), `tokens` (lists of one length, of uint16 or uint32) and `starts` (the offsets in the block at which a
document begins). `tokens` of a record batch is one flat stretch of the file, so a block is a view of it: a corpus may be
larger than memory, and every process of a machine shares the same pages.

Shapes: B blocks of a batch, T tokens of a block.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine import seeds
from engine.errors import UserError
from engine.store.whole_file import whole_file

Array = np.ndarray[Any, np.dtype[Any]]
Keep = Callable[[Path], AbstractContextManager[Path]]  # `whole_file`, or a job's `keep`


def write_shard(
    path: Path,
    ids: list[str],
    parents: list[list[str]] | pa.ListArray,
    tokens_BT: Array,
    starts: list[list[int]] | pa.ListArray,
    keep: Keep = whole_file,
) -> None:
    """Write one file, whole or not at all."""
    block = tokens_BT.shape[1]
    batch = pa.record_batch({
        "id": pa.array(ids, pa.string()),
        "parents": pa.array(parents, pa.list_(pa.string())) if isinstance(parents, list) else parents,
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens_BT.reshape(-1)), block),
        "starts": pa.array(starts, pa.list_(pa.int32())) if isinstance(starts, list) else starts,
    })  # fmt: skip
    with keep(path) as partial, pa.ipc.new_file(str(partial), batch.schema) as writer:
        writer.write_batch(batch)


class Shards:
    """The blocks of a shard folder, numbered through in the order of its files.

    Args:
        folder: an artifact of kind TokenBlock (`artifact.path`).
        split: "data" for training, "validation" for held-out documents.

    Attributes:
        block: tokens of a block.

    Raises:
        UserError: there is no block, a file is damaged, or the blocks differ in length.
    """

    def __init__(self, folder: str | Path, split: str = "data") -> None:
        self.folder = Path(folder)
        self.files = sorted((self.folder / split).glob("*.arrow"))
        self._batches = [batch for file in self.files for batch in _batches(file)]
        if not self._batches:
            raise UserError(f"there is no token block in {self.folder / split}/*.arrow; `tokenize` makes them.")
        self._tokens = [_matrix(batch.column("tokens"), self.folder / split) for batch in self._batches]
        lengths = {tokens.shape[1] for tokens in self._tokens}
        if len(lengths) > 1:
            raise UserError(f"the shards in {self.folder / split} have blocks of different lengths: {sorted(lengths)}.")
        self.block: int = lengths.pop()
        self._ends: list[int] = np.cumsum([len(tokens) for tokens in self._tokens]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Array:
        """A view of one block (T), in the type of the file."""
        batch, row = self._place(index)
        return self._tokens[batch][row]

    def tokens_BT(self, rows: Sequence[int] | Array) -> Array:
        """The tokens of these blocks, int64."""
        if isinstance(rows, range) and rows and rows.step == 1 and rows.start >= 0:
            batch, row = self._place(rows.start)
            if rows.stop <= self._ends[batch]:  # one stretch of the file, converted at once
                return self._tokens[batch][row : row + len(rows)].astype(np.int64)
        out_BT = np.empty((len(rows), self.block), np.int64)
        for i, index in enumerate(rows):
            batch, row = self._place(int(index))
            out_BT[i] = self._tokens[batch][row]
        return out_BT

    def documents_BT(self, rows: Sequence[int]) -> Array:
        """For each token the number of its document within the block, from 0 (or 1, where one begins at 0), int64."""
        out_BT = np.zeros((len(rows), self.block), np.int64)
        for i, index in enumerate(rows):
            out_BT[i, self.starts(index)] = 1
        return out_BT.cumsum(1)

    def starts(self, index: int) -> list[int]:
        """The offsets in a block at which a document begins; what stands before the first goes on from the last block."""
        return self._cell(index, "starts")

    def parents(self, index: int) -> list[str]:
        """The ids of the documents in a block, in order."""
        return self._cell(index, "parents")

    def row_id(self, index: int) -> str:
        return self._cell(index, "id")

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

    def _cell(self, index: int, column: str) -> Any:
        batch, row = self._place(index)
        return self._batches[batch].column(column)[row].as_py()

    def _place(self, index: int) -> tuple[int, int]:
        """(record batch, row in it) of a block."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        index %= len(self)
        batch = bisect_right(self._ends, index)
        return batch, index - (self._ends[batch - 1] if batch else 0)


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a file that hold rows."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a whole Arrow IPC file: {error}.") from error
    yield from filter(len, (reader.get_batch(i) for i in range(reader.num_record_batches)))


def _matrix(column: pa.Array, folder: Path) -> Array:
    """A column of lists as a matrix: a view of its buffer."""
    lengths = column.value_lengths().unique().to_pylist()
    if len(lengths) > 1:
        raise UserError(f"the shards in {folder} have blocks of different lengths: {sorted(lengths)}.")
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), lengths[0])


def block_order(seed: int, position: int, count: int, blocks: int) -> list[int]:
    """The blocks at places [position, position + count) of an endless sequence of shuffled passes over all of them.

    Pass e is a permutation derived from (seed, e) alone: the order depends neither on batch size nor on how many
    processes share the work, and going on from a position needs nothing but the position.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, at = divmod(position + len(chosen), blocks)
        chosen += _permutation(seed, epoch, blocks)[at : at + count - len(chosen)].tolist()
    return chosen


_passes: dict[tuple[int, int, int], Array] = {}


def _permutation(seed: int, epoch: int, blocks: int) -> Array:
    key = (seed, epoch, blocks)
    if key not in _passes:
        if len(_passes) > 1:  # the pass that ends and the one that begins
            _passes.pop(next(iter(_passes)))
        _passes[key] = seeds.generator(seed, "epoch", epoch).permutation(blocks)
    return _passes[key]
