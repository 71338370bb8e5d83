"""Token shards as they lie on disk: Arrow IPC files, memory-mapped, read without a copy.

A shard's rows are blocks of a fixed number of tokens. What is given out is a NumPy view of the file until a batch is
gathered, so a corpus may be larger than memory and every process of a machine shares the same pages.

Shapes: B blocks of a batch, T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine import seeds
from engine.errors import UserError


@dataclass(frozen=True)
class _Batch:
    """One record batch of a shard."""

    tokens_NT: np.ndarray  # a view of the file
    starts: pa.ListArray
    ids: pa.Array


class Shards:
    """All blocks of some Arrow files, numbered through in the order of the files.

    Args:
        folder: holds `*.arrow` files with columns `id`, `tokens` and `starts`.

    Raises:
        UserError: no block is there, or blocks have different lengths.
    """

    def __init__(self, folder: Path) -> None:
        self._batches: list[_Batch] = []
        for file in sorted(folder.glob("*.arrow")):
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                if len(batch):
                    tokens = _matrix(batch.column("tokens"), file)
                    self._batches.append(_Batch(tokens, batch.column("starts"), batch.column("id")))
        if not self._batches:
            raise UserError(f"there is no token block in {folder}: the stage before this one gave nothing to train on.")
        lengths = {batch.tokens_NT.shape[1] for batch in self._batches}
        if len(lengths) > 1:
            raise UserError(f"the shards in {folder} have blocks of different lengths: {sorted(lengths)}.")
        self.block: int = lengths.pop()
        self._ends = np.cumsum([len(batch.tokens_NT) for batch in self._batches])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[_Batch, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        return self._batches[place], index - (int(self._ends[place - 1]) if place else 0)

    def tokens(self, indices: Sequence[int]) -> np.ndarray:
        """The tokens of these blocks, int64 (B, T)."""
        out_BT = np.empty((len(indices), self.block), np.int64)
        for row, index in enumerate(indices):
            batch, at = self._locate(index)
            out_BT[row] = batch.tokens_NT[at]
        return out_BT

    def documents(self, indices: Sequence[int]) -> np.ndarray:
        """For each token the number of its document within the block, from 0 (or 1, where one begins at 0); (B, T)."""
        out_BT = np.zeros((len(indices), self.block), np.int64)
        for row, index in enumerate(indices):
            batch, at = self._locate(index)
            out_BT[row, batch.starts[at].values.to_numpy(zero_copy_only=False)] = 1
        return out_BT.cumsum(1)

    def row_ids(self, indices: Sequence[int]) -> list[str]:
        return [batch.ids[at].as_py() for batch, at in map(self._locate, indices)]


def _matrix(column: pa.Array, file: Path) -> np.ndarray:
    """A list column as an (N, T) view of its buffer."""
    if isinstance(column, pa.FixedSizeListArray):
        width = column.type.list_size
    else:
        lengths = column.value_lengths().unique().to_pylist()
        if len(lengths) != 1:
            raise UserError(f"{file} has blocks of different lengths: {sorted(lengths)}.")
        (width,) = lengths
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), width)


def order(seed: int, position: int, count: int, blocks: int) -> list[int]:
    """The blocks at places [position, position + count) of an endless sequence of shuffled passes over all of them.

    Pass e is a permutation derived from (seed, e) alone: the order depends neither on batch size nor on how many
    processes share the work, and going on from a position needs nothing but the position.
    """
    found: list[int] = []
    while len(found) < count:
        epoch, at = divmod(position + len(found), blocks)
        found += _permutation(seed, epoch, blocks)[at : at + count - len(found)].tolist()
    return found


_last: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, blocks: int) -> np.ndarray:
    key = (seed, epoch, blocks)
    if key not in _last:
        if len(_last) > 1:  # the pass that ends and the one that begins
            _last.pop(next(iter(_last)))
        _last[key] = seeds.generator(seed, "epoch", epoch).permutation(blocks)
    return _last[key]
