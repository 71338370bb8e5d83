"""Cutting out of documents what stands in one before: lines, paragraphs, or any passage of so many words.

Every line (paragraph, window of `passage` words: Lee et al. 2022, "Deduplicating training data makes language models
better", there over tokens and by a suffix array) is known by 128 bits. The first in the order of preference stays. Lines and
paragraphs are compared in their normal form with white space collapsed, windows by their words (see `engine.text`).

Three phases, and the naming of `pipelines.dedup.names`: groups of files leave their pieces by range of digests, ranges leave repeats by
group of files, and groups are written without these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from engine.execution.threads import cores
from engine.stage.job import Job, part_name
from engine.store.schema import row_id
from pipelines.dedup.groups import Group, cut, file_bytes
from pipelines.dedup.names import Naming, names_for
from pipelines.dedup.preference import Preference, ordered
from pipelines.dedup.shuffle import Columns, Shuffle, Table, joined
from pipelines.dedup.stage import Dedup
from pipelines.kernels.pieces import lines, repeats, windows
from pipelines.kernels.word_hashes import U64, find_words, make_room
from pipelines.texts.columns import Array, Texts, texts_of
from pipelines.texts.documents import Documents
from pipelines.texts.forms import Forms, whole_forms, word_forms

PART_BYTES = 32 << 20
GROUP_BYTES = {"passage": 4 << 20, "paragraph": 24 << 20, "line": 24 << 20}
BETWEEN = {"passage": 6, "paragraph": 24, "line": 24}  # bytes of text a piece, about
PIECE = 80  # bytes of a piece while those of a range are compared
LEAST_RANGES = 8
PIECES, REPEATS = "pieces", "repeats"


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


def remove_repeats(stage: Dedup, job: Job) -> None:
    """Write the documents without what stands in one that comes before."""
    unit = "passage" if stage.method == "substring" else stage.level
    groups = cut(job, "documents", size=GROUP_BYTES[unit])
    pieces = 4 * sum(map(file_bytes, job.all("documents"))) // BETWEEN[unit]
    own = int(stage.memory_gb * 1e9) // min(job.executor.width, cores())
    ranges = max(-(-pieces * PIECE // max(own, 1)), min(len(groups), LEAST_RANGES))
    folder, total, done = f"repeats-{ranges}", job.rows("documents"), 0
    rows: list[list[int]] = []
    for told in job.spread(Cutting, groups, stage, folder, ranges):
        rows.append(told)
        done += sum(told)
        job.progress(done, total, "rows", doing="reading")
    begins = np.append(0, np.cumsum([sum(told) for told in rows], dtype=np.int64))
    for index, _ in enumerate(job.spread(Comparing, range(ranges), folder, begins)):
        job.progress(index + 1, ranges, "ranges", doing="comparing")
    found = [f"{REPEATS}/{index:06d}" for index in range(ranges)]
    for _ in job.spread(Naming, groups, folder, begins, found, []):
        pass
    documents = Documents(job.all("documents"), [])
    ends = np.cumsum(
        [documents.batch_count(g.files, r, PART_BYTES) for g, r in zip(groups, rows, strict=True)]
    ).tolist()
    digits = max(5, len(str(ends[-1] if ends else 0)))
    tasks = [(group, first, digits) for group, first in zip(groups, [0, *ends], strict=False)]
    done, sums = 0, np.zeros(3, np.int64)
    for count, told in job.spread(Leaving, tasks, stage, folder, begins, found):
        done, sums = done + count, sums + told
        job.progress(done, total, "rows", doing="writing")
    cut_documents, pieces_cut, bytes_cut = sums.tolist()
    counts = {f"{unit}s_cut": pieces_cut}
    job.summary(documents=total, documents_cut=cut_documents, **counts, bytes_cut=bytes_cut)


def _cutter(stage: Dedup) -> Cutter:
    return Cutter("passage" if stage.method == "substring" else stage.level, stage.passage, stage.min_words)


class Cutting:
    """Finds the pieces of a group's documents, and leaves them by range of digests."""

    def __init__(self, job: Job, stage: Dedup, folder: str, ranges: int) -> None:
        self._job, self._shuffle, self._ranges = job, Shuffle(job, folder), ranges
        self._cutter, self._preference = _cutter(stage), Preference(stage, by_length=False)

    def __call__(self, group: Group) -> list[int]:
        """Returns how many rows each file has."""
        name = f"{PIECES}/{group.name}"
        if (known := self._shuffle.facts(name)) is not None:
            return known["rows"]
        rows = dict.fromkeys(group.files, 0)
        made: list[Columns] = [self._columns(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))]
        preferred: list[Columns] = [{"trust": np.zeros(0, np.uint32), "worth": np.zeros(0)}]
        documents, start = Documents(self._job.all("documents"), group.files), 0
        for file, batch in documents.by_file(["text", *self._preference.columns]):
            texts = texts_of(batch.column("text"))
            for i, (keys, _, long) in enumerate(self._cutter.pieces(texts)):
                if len(long):
                    made.append(self._columns(keys[long], np.full(len(long), start + i), long))
            if not self._preference.plain:
                trust, worth = self._preference.of(batch, np.diff(texts.offsets))
                preferred.append({"trust": trust, "worth": worth})
            start += len(batch)
            rows[file] += len(batch)
        table = joined(made)
        if not self._preference.plain:
            table |= {key: values[table["document"]] for key, values in joined(preferred).items()}
        part = (table["one"] >> U64(32)) * U64(self._ranges) >> U64(32)
        pieces = Table.split(part.astype(np.int64), self._ranges, **table)
        told = list(rows.values())
        self._shuffle.put(name, {"rows": told}, pieces=pieces)
        return told

    def _columns(self, keys: Array, documents: Array, pieces: Array) -> Columns:
        whole = {"document": documents.astype(np.uint32), "piece": pieces.astype(np.uint32)}
        return {"one": keys[:, 0].copy(), "two": keys[:, 1].copy(), **whole}


class Comparing:
    """Finds what stands more than once in a range of digests."""

    def __init__(self, job: Job, folder: str, begins: Array) -> None:
        self._shuffle, self._begins = Shuffle(job, folder), begins

    def __call__(self, index: int) -> dict[str, Any]:
        name = f"{REPEATS}/{index:06d}"
        if (known := self._shuffle.facts(name)) is not None:
            return known
        parts: list[Columns] = []
        for group, begin in enumerate(self._begins[:-1].tolist()):
            part = self._shuffle.part(f"{PIECES}/{group:06d}", "pieces", index)
            parts.append({**part, "document": part["document"] + np.int64(begin)})
        rows = joined(parts)
        del parts
        count, size = len(rows["one"]), 16
        while size < 2 * count:
            size *= 2
        place = ordered(rows["trust"], rows["worth"]) if "trust" in rows else np.arange(count)
        out = np.empty((count, 3), np.uint32)
        met = repeats(
            rows["one"], rows["two"], np.arange(count, dtype=np.uint32), rows["piece"], place,
            np.full(size, -1, np.int64), out,
        )  # fmt: skip
        row, first = out[:met, 0], rows["document"][out[:met, 2]]
        document = rows["document"][row]
        asked = np.unique(np.stack([first, document], 1), axis=0)
        return self._shuffle.put(
            name,
            {},
            repeats=Table.sorted_by(document, self._begins, document=document, piece=out[:met, 1].copy(), first=first),
            originals=Table.sorted_by(asked[:, 0], self._begins, original=asked[:, 0], document=asked[:, 1]),
        )


class Leaving:
    """Writes what is left of a group's documents; gives how many these are, and how many were cut, pieces of them, and bytes.

    Args:
        found: files of repeats.
    """

    def __init__(self, job: Job, stage: Dedup, folder: str, begins: Array, found: list[str]) -> None:
        self._job, self._shuffle, self._begins, self._found = job, Shuffle(job, folder), begins, found
        self._cutter, self._done = _cutter(stage), job.committed()

    def __call__(self, task: tuple[Group, int, int]) -> tuple[int, Array]:
        group, index, digits = task
        begin, end = self._begins[group.index : group.index + 2].tolist()
        found = self._shuffle.gather(self._found, "repeats", group.index)
        order = np.lexsort((found["piece"], found["document"]))
        found = {key: values[order] for key, values in found.items()}
        kept, ids = names_for(self._shuffle, len(self._begins) - 1, group.index)
        names: dict[int, str] = dict(zip(kept.tolist(), ids.to_pylist(), strict=True))
        sums = np.zeros(3, np.int64)
        for start, batch in Documents(self._job.all("documents"), group.files).batches(size=PART_BYTES):
            name = part_name(index, batch.column("id").to_pylist(), digits)
            low, high = np.searchsorted(found["document"], [begin + start, begin + start + len(batch)])
            sums += self._leave(name, batch, begin + start, {key: some[low:high] for key, some in found.items()}, names)
            index += 1
        return end - begin, sums

    def _leave(self, name: str, batch: pa.RecordBatch, start: int, here: Columns, names: dict[int, str]) -> Array:
        """Commit a part, whose first document is `start`: (documents cut, pieces cut, bytes cut)."""
        cut_numbers, firsts = np.unique(here["document"], return_index=True)
        table = pa.Table.from_batches([batch]).take(cut_numbers - start)
        texts = texts_of(table.column("text"))
        changed: dict[int, dict[str, Any]] = dict(zip(cut_numbers.tolist(), table.to_pylist(), strict=True))
        kept: dict[int, dict[str, Any]] = {}
        rejected: list[dict[str, Any]] = []
        pieces_of, first_of = (np.split(here[key], firsts[1:]) for key in ("piece", "first"))
        pieces = bytes_cut = 0
        for i, ((document, row), (_, spans, _)) in enumerate(
            zip(changed.items(), self._cutter.pieces(texts), strict=True)
        ):
            data, at, last = texts.text(i)
            rest = bytearray()
            for number, (begin, end, first) in enumerate(_joined(pieces_of[i], first_of[i], spans)):
                rest += data[at:begin].tobytes()
                at = end
                cut_out = data[begin:end].tobytes().decode().rstrip("\n")
                rejected.append({
                    **row, "id": row_id("Document", row["id"], "cut", number), "parents": [row["id"]], "text": cut_out,
                    "kept_id": names[first], "reason": f"duplicate_{self._cutter.unit}",
                    "detail": f"stands in {names[first]}",
                })  # fmt: skip
                pieces += 1
                bytes_cut += end - begin
            rest += data[at:last].tobytes()
            left = rest.decode()
            if left.strip():
                own = {"id": row_id("Document", left, row["id"]), "parents": [row["id"]], "text": left}
                kept[document] = {**row, **own}
            else:
                rejected.append({**row, "kept_id": None, "reason": "nothing_left", "detail": "all of it was cut out"})
        if name not in self._done:
            _commit(self._job, name, batch, start, changed, kept, rejected)
        return np.array([len(changed), pieces, bytes_cut])


def _joined(pieces: Array, firsts: Array, spans: Array) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first document) of what is to be cut out of one text; windows that overlap become one stretch."""
    begin = end = -1
    first = 0
    for piece, document in zip(pieces.tolist(), firsts.tolist(), strict=True):
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
