"""`tokenize`: documents -> packed blocks of token ids, and the tokenizer that made them.

    tokenizer/          the tokenizer in the Hugging Face layout
    data/*.arrow        the blocks (see `pipelines.tokenize.shards`)
    validation/*.arrow  the blocks of held-out documents

Documents follow each other, each ended by `<|endoftext|>`, and the stream is cut into blocks; the last block is filled
up with `<|endoftext|>`, and how much that was is stated as `waste`. Or, with `packing: best_fit`, documents are cut only
where they are longer than a block (Ding et al. 2024, "Fewer truncations improve language modeling"): pieces go, the longest
first, where they leave the least room, and what is left over of each block is filled up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numba
import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.stage import Device, NotIdentity, Port, Stage, port
from engine.store.digest import digest_file
from engine.store.schema import row_id
from pipelines.texts.shingles import Array, Texts, texts_of
from pipelines.tokenize.pretokens import PretokenCache, fits
from pipelines.tokenize.shards import write_shard

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
SPECIAL = (END, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
SHARD_BYTES = 64 << 20
PART_ROWS = 2_000


class Tokenize(Stage):
    """Train a byte-level BPE on the documents (or take one), encode them and pack them into blocks."""

    takes: ClassVar[dict[str, Port]] = {
        "documents": port("Document", many=True),
        "tokenizer": port("TokenBlock", "Model", optional=True),
    }
    gives: ClassVar[str] = "TokenBlock"
    phase: ClassVar[str] = "curation"

    tokenizer: Annotated[str | None, NotIdentity] = Field(
        None,
        description="A folder in the Hugging Face layout, relative to the recipe, or a hub name. None: the one of the "
        "`tokenizer` input, or else one that is trained on the documents.",
    )
    vocab_size: int = Field(
        8192, ge=256 + len(SPECIAL), description="Of the tokenizer to train, special tokens included."
    )
    train_bytes: int = Field(
        1_000_000_000, ge=1, description="Train on about this many bytes of the documents at most."
    )
    block: int = Field(512, ge=2, description="Tokens of a block.")
    packing: Literal["stream", "best_fit"] = Field(
        "stream",
        description="`stream` cuts documents at the ends of blocks, `best_fit` only those longer than a block.",
    )
    validation: float = Field(0.0, ge=0, lt=1, description="Share of documents held out, chosen by their ids' digest.")

    def sources(self, base: str) -> dict[str, str]:
        if self.tokenizer is None:
            return {}
        folder = Path(base) / self.tokenizer
        if not folder.is_dir():
            if self.tokenizer.startswith((".", "/", "~")):
                raise UserError(f"there is no tokenizer folder {folder}; give a folder in the Hugging Face layout.")
            return {"tokenizer": f"hub:{self.tokenizer}"}
        return {f"tokenizer/{file.name}": digest_file(file) for file in sorted(folder.glob("*tok*")) if file.is_file()}

    def forecast(self, given: dict[str, list[dict[str, Any]]], device: Device) -> dict[str, Any]:
        trains = self.tokenizer is None and not given.get("tokenizer")
        return {"block": self.block, "summary": {"vocab_size": self.vocab_size} if trains else {}}

    def run(self, job: Job) -> None:
        done = job.scratch / "done"
        if done.exists():  # killed while the files were being moved into the artifact
            return
        folder = job.output / "tokenizer"
        if not folder.exists():
            partial = job.scratch / "tokenizer.partial"
            shutil.rmtree(partial, ignore_errors=True)
            self._make_tokenizer(job, partial)
            partial.rename(folder)
        encoder = Encoder(folder)
        state = _State.load(job.scratch / "state.json")
        best = self.packing == "best_fit"
        packers = {
            split: _Packer(job.output / split, self.block, best, encoder, state) for split in ("data", "validation")
        }
        total = job.rows("documents")
        seen = 0
        for batch in _documents(job):
            seen += len(batch)
            if seen <= state.documents:  # packed before a kill
                continue
            ids: list[str] = batch.column("id").to_pylist()
            texts = texts_of(batch.column("text"))
            held_out = _share(ids, 0) < self.validation
            sizes: list[int] = np.diff(texts.offsets).tolist()
            for identity, size, ids_T, held in zip(ids, sizes, encoder.encode(texts), held_out, strict=True):
                packers["validation" if held else "data"].add(identity, size, ids_T)
            if any(packer.full for packer in packers.values()):
                for packer in packers.values():
                    packer.flush()
                state.documents = seen
                state.save(job.scratch / "state.json")
            job.progress(seen, total, "rows")
        for packer in packers.values():
            packer.flush(last=True)
        counts = {split: packer.counts for split, packer in packers.items()}
        facts = {split: {**c, "bytes_per_token": c["bytes"] / max(c["tokens"], 1)} for split, c in counts.items()}
        job.summary(
            **facts["data"],
            validation=facts["validation"],
            vocab_size=encoder.vocab_size,
            block=self.block,
            eos_token_id=encoder.eos,
        )
        if not counts["data"]["documents"]:
            raise UserError(f"all {total} documents were held out for validation; lower `validation`.")
        done.touch()

    def _make_tokenizer(self, job: Job, folder: Path) -> None:
        given = job.maybe("tokenizer")
        if given is not None or self.tokenizer is not None:
            if given is not None:
                location = given.path / "tokenizer" if given.kind == "TokenBlock" else given.location
            else:
                local = Path(job.base) / cast(str, self.tokenizer)
                location = local if local.is_dir() else cast(str, self.tokenizer)
            load(str(location)).save_pretrained(str(folder))
            return
        total = 0
        for batch in _documents(job, ["text"]):
            total += int(np.diff(texts_of(batch.column("text")).offsets).sum())
        share = self.train_bytes / max(total, 1)
        seen, rows = 0, job.rows("documents")

        def texts() -> Iterator[list[str]]:
            nonlocal seen
            for batch in _documents(job):
                ids: list[str] = batch.column("id").to_pylist()
                held_out = _share(ids, 0) < self.validation
                chosen = ~held_out & (_share(ids, 1) < share)
                yield batch.column("text").filter(pa.array(chosen)).to_pylist()
                seen += len(batch)
                job.progress(seen, rows, "rows", doing="training the tokenizer")

        save(train_bpe(texts(), self.vocab_size), folder)


def _documents(job: Job, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for artifact in job.all("documents"):
        yield from artifact.batches(columns=columns or ["id", "text"], rows=PART_ROWS)


def _share(ids: list[str], use: int) -> Array:
    """A number in [0, 1) for each id, decided by its digest; another one for each use."""
    return np.array([xxhash.xxh3_64_intdigest(i.encode(), seed=use) for i in ids], dtype=np.uint64) / 2.0**64


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def train_bpe(texts: Iterator[list[str]], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, over GPT-2's pre-tokens). The same texts give the same merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Save in the Hugging Face layout, without a chat template: that is what tells a base model."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(str(folder))


def load(location: str) -> Any:
    """A Hugging Face tokenizer from a folder or by hub name.

    Raises:
        UserError: it can't be loaded, or has no end-of-sequence token to put between documents.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer can be loaded from {location}: {str(error).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"the tokenizer {location} needs an `eos_token` and a tokenizer.json.")
    return tokenizer


class Encoder:
    """Text -> ids, without special tokens; text that looks like a special token stays text.

    Attributes:
        eos: the id that ends a document.
        vocab_size: ids are below this.
    """

    def __init__(self, folder: Path) -> None:
        tokenizer = load(str(folder))
        self.eos: int = tokenizer.eos_token_id
        self.vocab_size: int = len(tokenizer)
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()

        self._cache = PretokenCache(self._encode) if fits(self._backend.to_str()) else None

    def encode(self, texts: Texts) -> list[Array]:
        """The ids of each text."""
        if self._cache is not None:
            return self._cache.encode(texts)
        cuts = zip(texts.offsets[:-1].tolist(), texts.offsets[1:].tolist(), strict=True)
        return [np.array(ids, np.uint32) for ids in self._encode([texts.data[a:b].tobytes().decode() for a, b in cuts])]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


# -- packing -----------------------------------------------------------------------------------------------------------


class _State:
    """How far packing is, on disk: the documents that are packed and what of them is not in a file yet."""

    def __init__(self, documents: int, splits: dict[str, Any]) -> None:
        self.documents = documents
        self.splits = splits

    @staticmethod
    def load(file: Path) -> _State:
        if not file.exists():
            return _State(0, {})
        known = json.loads(file.read_text())
        return _State(known["documents"], known["splits"])

    def save(self, file: Path) -> None:
        partial = file.with_name(file.name + ".partial")
        partial.write_text(json.dumps({"documents": self.documents, "splits": self.splits}))
        partial.replace(file)


class _Packer:
    """Strings documents together and cuts the stream into blocks, a file of them at a time."""

    def __init__(self, folder: Path, block: int, best_fit: bool, encoder: Encoder, state: _State) -> None:
        self.folder = folder
        self.block = block
        self.best_fit = best_fit
        self.encoder = encoder
        self.state = state
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
        if self.best_fit:
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
        write_shard(self.folder / f"{self.files:05d}.arrow", ids, parents, tokens_BT, starts)
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
    count = int(_best_fit(lengths, order, block, bins, offset))
    first = np.full(count, len(lengths), np.int64)
    np.minimum.at(first, bins, np.arange(len(lengths)))
    number = np.empty(count, np.int64)
    number[np.argsort(first)] = np.arange(count)
    return number[bins], offset, count


@numba.njit(cache=True, nogil=True)
def _best_fit(lengths: Any, order: Any, block: int, bins: Any, offset: Any) -> int:
    head = np.full(block + 1, -1, np.int64)  # blocks with so much room left, as linked lists
    after = np.full(len(lengths), -1, np.int64)
    count = 0
    for piece in order:
        size = lengths[piece]
        left = size
        while left <= block and head[left] < 0:
            left += 1
        if left > block:
            chosen, left = count, block
            count += 1
        else:
            chosen = head[left]
            head[left] = after[chosen]
        bins[piece], offset[piece] = chosen, block - left
        after[chosen] = head[left - size]
        head[left - size] = chosen
    return count
