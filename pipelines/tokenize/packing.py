"""Documents packed into blocks, a file of blocks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.store.schema import row_id
from engine.store.whole_file import whole_file
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array
from pipelines.tokenize.shards import Keep, write_shard

if TYPE_CHECKING:
    from pipelines.tokenize.encoder import Encoder

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
    """Strings documents together and cuts the stream into blocks, a file of them at a time."""

    def __init__(
        self,
        folder: Path,
        block: int,
        by_best_fit: bool,
        encoder: Encoder,
        state: PackingState,
        keep: Keep = whole_file,
    ) -> None:
        self.folder = folder
        self.block = block
        self.by_best_fit = by_best_fit
        self.encoder = encoder
        self.state = state
        self.keep = keep
        known = state.splits.get(folder.name, {})
        self.files: int = known.get("files", 0)
        self.counts: dict[str, int] = known.get("counts") or dict.fromkeys(
            ("documents", "bytes", "tokens", "blocks", "waste"), 0
        )
        # What is not in a file yet: ids of tokens, and (offset in them, id) of the documents; the first may have begun
        # in a block that is written, then its offset is negative.
        self.tokens: list[Array] = [np.array(known.get("tokens", []), encoder.dtype)]
        self.begins: list[tuple[int, str]] = [(int(at), str(name)) for at, name in known.get("begins", [])]
        self.size = len(self.tokens[0])

    @property
    def full(self) -> bool:
        return self.size * self.encoder.dtype.itemsize >= SHARD_BYTES

    def add(self, identity: str, size: int, ids_T: Array) -> None:
        self.begins.append((self.size, identity))
        self.tokens += [ids_T.astype(self.encoder.dtype), np.array([self.encoder.eos], self.encoder.dtype)]
        self.size += len(ids_T) + 1
        self.counts["documents"] += 1
        self.counts["bytes"] += size
        self.counts["tokens"] += len(ids_T) + 1

    def flush(self, last: bool = False) -> None:
        """Write the whole blocks (and, at the end, the last one, filled up) as one file."""
        if self.by_best_fit:
            self._flush_best_fit()
            return
        stream = np.concatenate(self.tokens)
        if last and len(stream) % self.block:
            waste = -len(stream) % self.block
            stream = np.concatenate([stream, np.full(waste, self.encoder.eos, self.encoder.dtype)])
            self.counts["waste"] += waste
        blocks = len(stream) // self.block
        if blocks:
            self._write(stream[: blocks * self.block].reshape(blocks, self.block), *self._boundaries(blocks))
        cut = blocks * self.block
        rest = stream[cut:]
        later = [(at - cut, name) for at, name in self.begins if at >= cut]
        if len(rest) and (not later or later[0][0] > 0):  # a document goes on into what is left
            later.insert(0, max((at - cut, name) for at, name in self.begins if at < cut))
        self.tokens, self.begins, self.size = [rest], later, len(rest)
        self._remember(rest)

    def _write(self, tokens_BT: Array, starts: list[list[int]], parents: list[list[str]]) -> None:
        ids = [row_id("TokenBlock", row.tobytes(), *of_row) for row, of_row in zip(tokens_BT, parents, strict=True)]
        write_shard(self.folder / f"{self.files:05d}.arrow", ids, parents, tokens_BT, starts, self.keep)
        self.files += 1
        self.counts["blocks"] += len(ids)

    def _remember(self, rest: Array) -> None:
        self.state.splits[self.folder.name] = {
            "files": self.files,
            "counts": dict(self.counts),
            "tokens": rest.tolist(),
            "begins": [[at, name] for at, name in self.begins],
        }

    def _flush_best_fit(self) -> None:
        """Write all documents as one file; blocks stand in the order of the first document in each."""
        stream = np.concatenate(self.tokens)
        begins = np.array([at for at, _ in self.begins], np.int64)
        sizes = np.diff(begins, append=len(stream))
        pieces = -(-sizes // self.block)
        document = np.repeat(np.arange(len(begins)), pieces)
        within = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # the number of a piece
        at = begins[document] + within * self.block
        lengths = np.minimum(sizes[document] - within * self.block, self.block)
        block, offset, count = best_fit(lengths, self.block)
        if count:
            tokens_BT = np.full((count, self.block), self.encoder.eos, self.encoder.dtype)
            starts: list[list[int]] = [[] for _ in range(count)]
            parents: list[list[str]] = [[] for _ in range(count)]
            names = [name for _, name in self.begins]
            order = np.lexsort((offset, block))
            where = (a[order].tolist() for a in (document, at, lengths, block, offset))
            for d, start, length, b, o in zip(*where, strict=True):
                tokens_BT[b, o : o + length] = stream[start : start + length]
                starts[b].append(o)
                parents[b].append(names[d])
            self._write(tokens_BT, starts, parents)
            self.counts["waste"] += count * self.block - len(stream)
        self.tokens, self.begins, self.size = [stream[:0]], [], 0
        self._remember(stream[:0])

    def _boundaries(self, blocks: int) -> tuple[list[list[int]], list[list[str]]]:
        """By block: the offsets at which documents begin, and the documents that have tokens in it."""
        starts: list[list[int]] = [[] for _ in range(blocks)]
        parents: list[list[str]] = [[] for _ in range(blocks)]
        ends = [at for at, _ in self.begins[1:]] + [self.size]
        for (at, name), end in zip(self.begins, ends, strict=True):
            for index in range(max(at, 0) // self.block, min(-(-end // self.block), blocks)):
                parents[index].append(name)
            if 0 <= at < blocks * self.block:
                starts[at // self.block].append(at % self.block)
        return starts, parents


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
