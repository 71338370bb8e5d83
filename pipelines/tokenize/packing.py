"""Documents packed into blocks, a file of blocks at a time.

Shapes: B blocks, D documents, T tokens of a block.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from engine.store.whole_file import whole_file
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, column, strings
from pipelines.tokenize.shards import Keep, write_shard

if TYPE_CHECKING:
    from pipelines.tokenize.encoding import Encoded

_best_fit = kernel("pipelines.kernels.best_fit", "best_fit")
SHARD_BYTES = 64 << 20


class PackingState:
    """How far packing is, on disk: the documents that are packed and what of them is not in a file yet."""

    def __init__(self, documents: int, splits: dict[str, Any]) -> None:
        self.documents = documents
        self.splits = splits

    @staticmethod
    def load(file: Path) -> PackingState:
        if not file.exists():
            return PackingState(0, {})
        known = json.loads(file.read_text())
        return PackingState(known["documents"], known["splits"])

    def save(self, file: Path, keep: Keep) -> None:
        with keep(file) as partial:
            partial.write_text(json.dumps({"documents": self.documents, "splits": self.splits}))


class Packer:
    """Strings documents together and cuts the stream into blocks, a file of them at a time.

    Args:
        eos: the id that fills blocks up.
        dtype: of the tokens.
    """

    def __init__(
        self,
        folder: Path,
        block: int,
        by_best_fit: bool,
        eos: int,
        dtype: np.dtype[Any],
        state: PackingState,
        keep: Keep = whole_file,
    ) -> None:
        self.folder = folder
        self.block = block
        self.by_best_fit = by_best_fit
        self.eos, self.dtype = eos, dtype
        self.state = state
        self.keep = keep
        known = state.splits.get(folder.name, {})
        self.files: int = known.get("files", 0)
        self.counts: dict[str, int] = known.get("counts") or dict.fromkeys(
            ("documents", "bytes", "tokens", "blocks", "waste"), 0
        )
        # What is not in a file yet: ids of tokens, and where in them documents begin, and which; the first may have begun
        # in a block that is written, then its offset is negative.
        begins: list[tuple[int, str]] = known.get("begins", [])
        self.tokens: list[Array] = [np.array(known.get("tokens", []), dtype)]
        self.begins: list[Array] = [np.array([at for at, _ in begins], np.int64)]
        self.names: list[pa.Array] = [strings([str(name) for _, name in begins])]
        self.size = len(self.tokens[0])

    @property
    def full(self) -> bool:
        return self.size * self.dtype.itemsize >= SHARD_BYTES

    def add(self, documents: Encoded) -> None:
        self.names.append(documents.names)
        self.begins.append(documents.begins + self.size)
        self.tokens.append(documents.tokens)
        self.size += len(documents.tokens)
        self.counts["documents"] += len(documents.names)
        self.counts["bytes"] += documents.bytes
        self.counts["tokens"] += len(documents.tokens)

    def flush(self, last: bool = False) -> None:
        """Write the whole blocks (and, at the end, the last one, filled up) as one file."""
        waste = -self.size % self.block if last and not self.by_best_fit else 0
        stream, begins_D, names_D = (
            np.concatenate([*self.tokens, np.full(waste, self.eos, self.dtype)]),
            np.concatenate(self.begins),
            pa.concat_arrays(self.names),
        )
        self.counts["waste"] += waste
        flush = self._flush_best_fit if self.by_best_fit else self._flush_stream
        rest, first = flush(stream, begins_D, names_D)
        self.tokens, self.begins = [stream[rest:].copy()], [begins_D[first:] - rest]
        self.names = [names_D.slice(first)]
        self.size = len(self.tokens[0])
        self.state.splits[self.folder.name] = {
            "files": self.files,
            "counts": dict(self.counts),
            "tokens": self.tokens[0].tolist(),
            "begins": [[at, n] for at, n in zip(self.begins[0].tolist(), self.names[0].to_pylist(), strict=True)],
        }

    def _flush_stream(self, stream: Array, begins_D: Array, names_D: pa.Array) -> tuple[int, int]:
        """Returns what to go on with: the first token, and the first document."""
        size, blocks = self.size, len(stream) // self.block
        cut = blocks * self.block
        if blocks:
            edges = np.arange(blocks + 1) * self.block
            # The documents of a block: from the first that ends in it or later to the last that begins before its end.
            ends_D = np.append(begins_D[1:], size)
            low_B = np.searchsorted(ends_D, edges[:-1], side="right")
            high_B = np.searchsorted(begins_D, edges[1:], side="left")
            there = begins_D[(begins_D >= 0) & (begins_D < cut)]
            bounds = np.searchsorted(there, edges, side="left")
            self._write(stream[:cut].reshape(blocks, self.block), names_D, low_B, high_B, there % self.block, bounds)
        first = int(np.searchsorted(begins_D, cut, side="left"))
        if cut < size and (first == len(begins_D) or begins_D[first] > cut):  # a document goes on into what is left
            first -= 1
        return min(cut, size), first

    def _write(
        self, tokens_BT: Array, names: pa.Array, low_B: Array, high_B: Array, starts: Array, bounds: Array
    ) -> None:
        """Write a file: block b has the documents `names[low_B[b]:high_B[b]]`, which begin at `starts[bounds[b]:bounds[b + 1]]`."""
        counts_B = high_B - low_B
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_B)])
        which = np.arange(offsets[-1]) + np.repeat(low_B - offsets[:-1], counts_B)
        parents = pa.ListArray.from_arrays(column(offsets.astype(np.int32)), names.take(column(which)))
        begins = pa.ListArray.from_arrays(column(bounds.astype(np.int32)), column(starts.astype(np.int32)))
        ids = block_ids(tokens_BT, names, low_B, high_B)
        write_shard(self.folder / f"{self.files:05d}.arrow", ids, parents, tokens_BT, begins, self.keep)
        self.files += 1
        self.counts["blocks"] += len(ids)

    def _flush_best_fit(self, stream: Array, begins_D: Array, names_D: pa.Array) -> tuple[int, int]:
        """Write all documents as one file; blocks stand in the order of the first document in each."""
        sizes = np.diff(begins_D, append=len(stream))
        pieces = -(-sizes // self.block)
        document = np.repeat(np.arange(len(begins_D)), pieces)
        within = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # the number of a piece
        at = begins_D[document] + within * self.block
        lengths = np.minimum(sizes[document] - within * self.block, self.block)
        block, offset, count = best_fit(lengths, self.block)
        if count:
            tokens = np.full(count * self.block, self.eos, self.dtype)
            order = np.lexsort((offset, block))
            into = block[order] * self.block + offset[order]
            for start, length, place in zip(at[order].tolist(), lengths[order].tolist(), into.tolist(), strict=True):
                tokens[place : place + length] = stream[start : start + length]
            bounds = np.searchsorted(block[order], np.arange(count + 1))
            names = names_D.take(column(document[order]))
            self._write(tokens.reshape(count, self.block), names, bounds[:-1], bounds[1:], offset[order], bounds)
            self.counts["waste"] += count * self.block - len(stream)
        return len(stream), len(begins_D)


def block_ids(tokens_BT: Array, names: pa.Array, low_B: Array, high_B: Array) -> list[str]:
    """`row_id("TokenBlock", tokens, *names)` of every block and its documents, a digest at once and not a part at a time."""
    told = [len(name).to_bytes(8, "little") + name for name in (one.encode() for one in names.to_pylist())]
    data, size = np.ascontiguousarray(tokens_BT).view(np.uint8).reshape(-1).data, tokens_BT[:1].nbytes
    head = b"TokenBlock" + size.to_bytes(8, "little")
    places = zip(range(0, len(data), size), low_B.tolist(), high_B.tolist(), strict=True)
    return [xxhash.xxh3_128_hexdigest(b"".join((head, data[i : i + size], *told[a:b]))) for i, a, b in places]


def best_fit(lengths: Array, block: int) -> tuple[Array, Array, int]:
    """Best-fit decreasing: the block and the offset in it of each piece, and the number of blocks.

    The longest piece first (of equals the first), each where it leaves the least room; a new block where there is none.
    Blocks are numbered by their first piece.
    """
    order = np.argsort(-lengths, kind="stable")
    bins = np.full(len(lengths), -1, np.int64)
    offset = np.zeros(len(lengths), np.int64)
    head, after = np.full(block + 1, -1, np.int64), np.full(len(lengths), -1, np.int64)
    count = _best_fit(lengths, order, block, head, after, bins, offset)
    first = np.full(count, len(lengths), np.int64)
    np.minimum.at(first, bins, np.arange(len(lengths)))
    number = np.empty(count, np.int64)
    number[np.argsort(first)] = np.arange(count)
    return number[bins], offset, count
