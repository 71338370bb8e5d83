"""Tokenizing: the tokenizer first, then documents are encoded and packed file by file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from engine.errors import UserError
from engine.stage.job import Job
from engine.stage.slices import Piece, Slice, row_counts
from pipelines.tokenize.bpe import train_words
from pipelines.tokenize.counts import Counting, PretokenCounts, Sizing, Words
from pipelines.tokenize.encoder import Encoder
from pipelines.tokenize.encoding import Encoding
from pipelines.tokenize.packing import Packer, PackingState
from pipelines.tokenize.stage import Tokenize
from pipelines.tokenize.tokenizer_files import load, save

PART_ROWS = 2_000  # of a batch
SLICE_BYTES = 16 << 20  # bytes on disk of a slice, about, if it is more than a batch


def tokenize(stage: Tokenize, job: Job) -> None:
    done = job.scratch / "done"
    if done.exists():  # killed while the files were being moved into the artifact
        return
    folder = job.output / "tokenizer"
    if not folder.exists():
        with job.keep(folder) as partial:
            shutil.rmtree(partial, ignore_errors=True)
            _make_tokenizer(stage, job, partial)
    encoder = Encoder.load(folder)
    state = PackingState.load(job.scratch / "state.json")
    best = stage.packing == "best_fit"
    data, validation = (
        Packer(job.output / split, stage.block, best, encoder.eos, encoder.dtype, state, job.keep)
        for split in ("data", "validation")
    )
    packers = {"data": data, "validation": validation}
    total, seen = job.rows("documents"), state.documents
    for batches in job.spread(Encoding, _slices(job, seen), encoder, PART_ROWS, stage.validation):
        for batch in batches:
            data.add(batch.data)
            validation.add(batch.validation)
            seen += batch.rows
            if data.full or validation.full:
                data.flush()
                validation.flush()
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
    save(train_words(_count(stage, job), stage.vocab_size), folder)


def _count(stage: Tokenize, job: Job) -> Words:
    """The pretokens of the documents to train on, counted wherever there is room."""
    rows = job.rows("documents")

    def counted(share: float) -> tuple[int, PretokenCounts]:
        counts, size, seen = PretokenCounts(), 0, 0
        for documents, its_bytes, words in job.spread(Counting, _slices(job, 0), PART_ROWS, stage.validation, share):
            counts.add(words)
            size, seen = size + its_bytes, seen + documents
            job.progress(seen, rows, "rows", doing="training the tokenizer")
        return size, counts

    # Nearly always all of it is trained on: then nothing is read to find that out.
    files = [a.manifest["files"][name]["bytes"] for a in job.all("documents") for name in a.parts()]
    if sum(files) > stage.train_bytes:
        size = sum(job.spread(Sizing, _slices(job, 0)))
    else:
        size, counts = counted(1)
        if size <= stage.train_bytes:
            return counts.words()
    return counted(stage.train_bytes / max(size, 1))[1].words()


def _slices(job: Job, packed: int) -> Iterator[Slice]:
    """The documents by file, a large one in several slices, without the first ones, which were packed before a kill.

    A slice begins where a batch begins, and batches are what is packed: where a file of blocks ends is the same however it is cut.
    """
    at = index = 0
    for number, artifact in enumerate(job.all("documents")):
        for name, rows in row_counts(artifact):
            size = artifact.manifest["files"][name]["bytes"] / max(rows, 1)
            step = PART_ROWS * max(1, int(SLICE_BYTES / max(size, 1) / PART_ROWS))
            begin = min(max(packed - at, 0), rows)
            for start in range(begin, rows, step):
                count = min(step, rows - start)
                yield Slice("documents", index, at + start, (Piece(number, name, start, count),), int(size * count))
                index += 1
            at += rows
