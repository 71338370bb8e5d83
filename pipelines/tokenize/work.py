"""Tokenizing: the tokenizer first, then documents are encoded and packed file by file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import xxhash

from engine.errors import UserError
from engine.stage.job import Job
from pipelines.texts.columns import Array, texts_of
from pipelines.tokenize.bpe import train_bpe
from pipelines.tokenize.encoder import Encoder
from pipelines.tokenize.packing import Packer, PackingState
from pipelines.tokenize.stage import Tokenize
from pipelines.tokenize.tokenizer_files import load, save

PART_ROWS = 2_000


def tokenize(stage: Tokenize, job: Job) -> None:
    done = job.scratch / "done"
    if done.exists():  # killed while the files were being moved into the artifact
        return
    folder = job.output / "tokenizer"
    if not folder.exists():
        with job.keep(folder) as partial:
            shutil.rmtree(partial, ignore_errors=True)
            _make_tokenizer(stage, job, partial)
    encoder = Encoder(folder)
    state = PackingState.load(job.scratch / "state.json")
    best = stage.packing == "best_fit"
    packers = {
        split: Packer(job.output / split, stage.block, best, encoder, state, job.keep)
        for split in ("data", "validation")
    }
    total = job.rows("documents")
    seen = 0
    for batch in _documents(job):
        seen += len(batch)
        if seen <= state.documents:  # packed before a kill
            continue
        ids: list[str] = batch.column("id").to_pylist()
        texts = texts_of(batch.column("text"))
        held_out = _share(ids, 0) < stage.validation
        sizes: list[int] = np.diff(texts.offsets).tolist()
        for identity, size, ids_T, held in zip(ids, sizes, encoder.encode(texts), held_out, strict=True):
            packers["validation" if held else "data"].add(identity, size, ids_T)
        if any(packer.full for packer in packers.values()):
            for packer in packers.values():
                packer.flush()
            state.documents = seen
            state.save(job.scratch / "state.json", job.keep)
        job.progress(seen, total, "rows")
    for packer in packers.values():
        packer.flush(last=True)
    counts = {split: packer.counts for split, packer in packers.items()}
    facts = {split: {**c, "bytes_per_token": c["bytes"] / max(c["tokens"], 1)} for split, c in counts.items()}
    job.summary(
        **facts["data"],
        validation=facts["validation"],
        vocab_size=encoder.vocab_size,
        block=stage.block,
        eos_token_id=encoder.eos,
    )
    if not counts["data"]["documents"]:
        raise UserError(f"all {total} documents were held out for validation; lower `validation`.")
    done.touch()


def _make_tokenizer(stage: Tokenize, job: Job, folder: Path) -> None:
    source = job.maybe("tokenizer")
    if source is not None or stage.tokenizer is not None:
        if source is not None:
            location = source.path / "tokenizer" if source.kind == "TokenBlock" else source.location
        else:
            local = Path(job.base) / cast(str, stage.tokenizer)
            location = local if local.is_dir() else cast(str, stage.tokenizer)
        load(str(location)).save_pretrained(str(folder))
        return
    total = 0
    for batch in _documents(job, ["text"]):
        total += int(np.diff(texts_of(batch.column("text")).offsets).sum())
    share = stage.train_bytes / max(total, 1)
    seen, rows = 0, job.rows("documents")

    def texts() -> Iterator[list[str]]:
        nonlocal seen
        for batch in _documents(job):
            ids: list[str] = batch.column("id").to_pylist()
            held_out = _share(ids, 0) < stage.validation
            chosen = ~held_out & (_share(ids, 1) < share)
            yield batch.column("text").filter(pa.array(chosen)).to_pylist()
            seen += len(batch)
            job.progress(seen, rows, "rows", doing="training the tokenizer")

    save(train_bpe(texts(), stage.vocab_size), folder)


def _documents(job: Job, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for artifact in job.all("documents"):
        yield from artifact.batches(columns=columns or ["id", "text"], rows=PART_ROWS)


def _share(ids: list[str], use: int) -> Array:
    """A number in [0, 1) for each id, decided by its digest; another one for each use."""
    return np.array([xxhash.xxh3_64_intdigest(i.encode(), seed=use) for i in ids], dtype=np.uint64) / 2.0**64
