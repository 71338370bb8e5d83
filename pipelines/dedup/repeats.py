"""Cutting out of documents what stands in one before: lines, paragraphs, or any passage of so many words.

Every line (paragraph, window of `passage` words: Lee et al. 2022, "Deduplicating training data makes language models
better", there over tokens and by a suffix array) is known by 128 bits; digests are partitioned on disk, and each partition
finds its repeats by itself. The first in the order of preference stays. Lines and paragraphs are compared in their normal
form with white space collapsed, windows by their words (see `engine.text`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from engine.stage.job import Job, part_name
from engine.store.schema import row_id
from pipelines.kernels.pieces import lines, repeats, windows
from pipelines.kernels.word_hashes import U64, find_words, make_room
from pipelines.texts.columns import Array, Texts, texts_of
from pipelines.texts.documents import Documents
from pipelines.texts.forms import Forms, whole_forms, word_forms

PART_BYTES = 32 << 20
RECORD = np.dtype([("one", np.uint64), ("two", np.uint64), ("document", np.uint32), ("piece", np.uint32)])
REPEAT = np.dtype([("document", np.uint32), ("piece", np.uint32), ("first", np.uint32)])


class Cutter:
    """Pieces of texts, with buffers that grow as they must.

    Args:
        unit: "line", "paragraph" or "passage".
    """

    def __init__(self, unit: str, passage: int, min_words: int) -> None:
        self.unit = unit
        self.passage = passage
        self.min_words = min_words if unit != "passage" else 1
        self._grow(1 << 16)

    def _grow(self, size: int) -> None:
        self.size = size
        self.keys = np.empty((size + 1, 2), np.uint64)
        self.spans = np.empty((size + 1, 4), np.int64)
        self.room: Any = make_room(size)
        self.words = np.empty(size + 1, np.uint64)

    def pieces(self, texts: Texts) -> Iterator[tuple[Array, Array, Array]]:
        """(digests, spans, numbers of the pieces that are long enough) of each text: views that hold until the next.

        Spans are places in `texts.data` (see `pipelines.kernels.pieces.lines`).
        """
        words = word_forms(texts, origin=True)
        find = self._passages if self.unit == "passage" else self._lines
        whole = words if self.unit == "passage" else whole_forms(texts, 1 + (self.unit == "paragraph"), origin=True)
        longest = max(words.texts.longest(), whole.texts.longest())
        if longest > self.size:
            self._grow(2 * longest)
        for i in range(len(texts)):
            count = find(words, whole, i)
            yield self.keys[:count], self.spans[:count], np.flatnonzero(self.spans[:count, 3] >= self.min_words)

    def _passages(self, words: Forms, _: Forms, i: int) -> int:
        data, begin, end = words.texts.text(i)
        count = windows(data, begin, end, self.passage, self.room, self.words, self.keys, self.spans)
        self.spans[:count, :2] = words.spans(self.spans[:count, :2])
        self.spans[:count, 2] = self.spans[:count, 1]
        return count

    def _lines(self, words: Forms, whole: Forms, i: int) -> int:
        data, begin, end = words.texts.text(i)
        lower, starts, ends = self.room
        starts = begin + starts[: find_words(data, begin, end, lower, starts, ends)].astype(np.int64)
        starts = starts if words.origin is None else words.origin[starts]
        assert whole.origin is not None
        return lines(
            *whole.texts.text(i), whole.origin, *whole.source.text(i), starts, self.keys, self.spans
        )  # fmt: skip


def remove_repeats(job: Job, unit: str, passage: int, min_words: int, order: Array | None, memory: int) -> None:
    """Write the documents without what stands in one that comes before it in `order` (None: as they come).

    Args:
        unit: "line", "paragraph" or "passage".
    """
    cutter = Cutter(unit, passage, min_words)
    file = job.scratch / "repeats.npy"
    if not file.exists():
        found = _find(job, cutter, order, memory)
        with job.keep(file) as partial, partial.open("wb") as opened:
            np.save(opened, found)
    _write(job, cutter, np.load(file, mmap_mode="r"))


def _find(job: Job, cutter: Cutter, order: Array | None, memory: int) -> Array:
    folder = job.scratch / "pieces"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    total = job.rows("documents")
    packed = sum(entry["bytes"] for a in job.all("documents") for entry in a.manifest["files"].values())
    pieces = 4 * packed // (6 if cutter.unit == "passage" else 24)
    count = min(max(-(-pieces * 2 * RECORD.itemsize // memory), 1), 512)
    files = [(folder / f"{i:03d}").open("wb") for i in range(count)]
    for start, batch in Documents(job.all("documents")).batches(["text"]):
        texts = texts_of(batch.column("text"))
        made: list[Array] = [np.empty(0, RECORD)]
        for i, (keys, _, long) in enumerate(cutter.pieces(texts)):
            if len(long):
                records = np.empty(len(long), RECORD)
                records["one"], records["two"] = keys[long, 0], keys[long, 1]
                records["document"], records["piece"] = start + i, long
                made.append(records)
        records = np.concatenate(made)
        part = (records["one"] >> U64(32)) * U64(count) >> U64(32)
        for i, file in enumerate(files):
            file.write(records[part == i].data if count > 1 else records.data)
        job.progress(start + len(batch), total, "rows", doing="reading")
    found: list[Array] = [np.empty(0, REPEAT)]
    rank = None if order is None else np.argsort(order)
    for i, file in enumerate(files):
        file.close()
        records = np.fromfile(folder / f"{i:03d}", RECORD)
        place = np.arange(len(records)) if rank is None else np.argsort(rank[records["document"]], kind="stable")
        size = 16
        while size < 2 * len(records):
            size *= 2
        out = np.empty((len(records), 3), np.uint32)
        met = repeats(
            records["one"], records["two"], records["document"], records["piece"], place,
            np.full(size, -1, np.int64), out,
        )  # fmt: skip
        found.append(np.ascontiguousarray(out[:met]).view(REPEAT).reshape(-1))
        (folder / f"{i:03d}").unlink()
        job.progress(i + 1, len(files), "partitions", doing="comparing")
    joined = np.concatenate(found)
    return joined[np.lexsort((joined["piece"], joined["document"]))]


def _write(job: Job, cutter: Cutter, repeats_: Array) -> None:
    numbers = np.asarray(repeats_["document"])
    wanted, documents = np.unique(repeats_["first"]), Documents(job.all("documents"))
    names: dict[int, str] = dict(zip(wanted.tolist(), documents.ids_of(wanted).to_pylist(), strict=True))
    total, done = job.rows("documents"), job.committed()
    cut_documents = pieces = bytes_cut = 0
    for index, (start, batch) in enumerate(documents.batches(size=PART_BYTES)):
        name = part_name(index, batch.column("id").to_pylist())
        low, high = np.searchsorted(numbers, [start, start + len(batch)])
        here = repeats_[low:high]
        cut_numbers, firsts = np.unique(here["document"], return_index=True)
        table = pa.Table.from_batches([batch]).take(cut_numbers - start)
        texts = texts_of(table.column("text"))
        changed: dict[int, dict[str, Any]] = dict(zip(cut_numbers.tolist(), table.to_pylist(), strict=True))
        kept: dict[int, dict[str, Any]] = {}
        rejected: list[dict[str, Any]] = []
        repeats_of = np.split(here, firsts[1:])
        for i, ((document, row), (_, spans, _)) in enumerate(zip(changed.items(), cutter.pieces(texts), strict=True)):
            data, at, last = texts.text(i)
            rest = bytearray()
            for number, (begin, end, first) in enumerate(_joined(repeats_of[i], spans)):
                rest += data[at:begin].tobytes()
                at = end
                cut = data[begin:end].tobytes().decode().rstrip("\n")
                rejected.append({
                    **row, "id": row_id("Document", row["id"], "cut", number), "parents": [row["id"]], "text": cut,
                    "kept_id": names[first], "reason": f"duplicate_{cutter.unit}", "detail": f"stands in {names[first]}",
                })  # fmt: skip
                pieces += 1
                bytes_cut += end - begin
            rest += data[at:last].tobytes()
            cut_documents += 1
            left = rest.decode()
            if left.strip():
                kept[document] = {
                    **row,
                    "id": row_id("Document", left, row["id"]),
                    "parents": [row["id"]],
                    "text": left,
                }
            else:
                rejected.append({**row, "kept_id": None, "reason": "nothing_left", "detail": "all of it was cut out"})
        if name not in done:
            _commit(job, name, batch, start, changed, kept, rejected)
        job.progress(start + len(batch), total, "rows", doing="writing")
    job.summary(documents=total, documents_cut=cut_documents, **{f"{cutter.unit}s_cut": pieces}, bytes_cut=bytes_cut)


def _joined(of_row: Array, spans: Array) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first document) of what is to be cut out of one text; windows that overlap become one stretch."""
    begin = end = -1
    first = 0
    for piece, document in zip(of_row["piece"].tolist(), of_row["first"].tolist(), strict=True):
        a, b = int(spans[piece, 0]), int(spans[piece, 2])
        if a < end:
            end = max(end, b)
            continue
        if end >= 0:
            yield begin, end, first
        begin, end, first = a, b, document
    if end >= 0:
        yield begin, end, first


def _commit(
    job: Job, name: str, batch: pa.RecordBatch, start: int, changed: dict[int, Any], kept: dict[int, Any],
    rejected: list[dict[str, Any]],
) -> None:  # fmt: skip
    table = pa.Table.from_batches([batch])
    stays = np.ones(len(table), bool)
    stays[[document - start for document in changed]] = False
    order = np.concatenate([np.flatnonzero(stays), np.array([document - start for document in kept], np.int64)])
    joined = table.filter(pa.array(stays))
    if kept:
        joined = pa.concat_tables([joined, pa.Table.from_pylist(list(kept.values()), schema=table.schema)])
        joined = joined.take(np.argsort(order))
    extra = [("kept_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
    schema = pa.schema([*table.schema, *(pa.field(*column) for column in extra)])
    job.commit(name, joined, pa.Table.from_pylist(rejected, schema=schema) if rejected else None)
