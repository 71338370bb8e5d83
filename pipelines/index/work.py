"""Building an index: segment by segment, and from an earlier one what stays of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load, save
from threadpoolctl import threadpool_limits

from engine.errors import UserError
from engine.retrieval.document_structure import cut
from engine.retrieval.embedding import digest_of_model, open_embedding
from engine.retrieval.full_text import Postings, joined, postings
from engine.retrieval.retrieval_index import FACTS, SEGMENTS
from engine.retrieval.terms import Terms
from engine.stage.job import Job, part_name
from engine.stage.slices import Slice
from engine.store.artifact import Artifact
from engine.store.schema import row_id, table
from pipelines.index.stage import Index

DOCUMENTS = 5_000  # a segment, when it is built
SMALL, FEW = 5_000, 8  # passages of a segment, and how many such segments there may be before they are put together
COLUMNS = ["id", "text", "source", "metadata"]  # of documents
EMPTY = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Segment:
    """Passages and what they are found by. `vectors`: (passages, width) half precision, or None."""

    rows: pa.Table
    postings: Postings
    vectors: NDArray[np.float16] | None

    def encoded(self) -> bytes:
        arrays = self.postings.arrays()
        return save({**arrays, "vectors": self.vectors} if self.vectors is not None else arrays)

    def without(self, gone: NDArray[np.bool_]) -> Segment:
        vectors = None if self.vectors is None else self.vectors[~gone]
        return Segment(self.rows.filter(pa.array(~gone)), self.postings.without(gone), vectors)


def index(stage: Index, job: Job) -> None:
    """Commit the passages, and write the segments they are found by.

    Raises:
        UserError: the earlier index was made in another way.
    """
    model = digest_of_model(stage.embedding, job.base) if stage.embedding else None
    facts = {"language": stage.language, "words": stage.words, "embedding": model}
    earlier = job.maybe("index")
    known = _documents_of(earlier, facts) if earlier else set[str]()
    now = [digests_of(job.table(piece, COLUMNS)) for piece in job.slices("documents", DOCUMENTS)]
    new = [
        piece for piece, ids in zip(job.slices("documents", DOCUMENTS), now, strict=True) if not known.issuperset(ids)
    ]
    counted = 0
    for rows in job.spread(
        Indexing, new, stage, earlier.id if earlier else "", known, width=1 if stage.asks() else None
    ):
        counted += rows
        job.progress(counted, sum(piece.rows for piece in new), "rows")
    made = {name: job.exchange.get(f"{SEGMENTS}/{name}") for name in sorted(job.committed()) if _made_here(job, name)}
    for name, data in {**made, **(_keep(job, earlier, now) if earlier else {})}.items():
        file = job.output / _file(name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
    (job.output / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True))
    added = sum(len(ids) - sum(map(known.__contains__, ids)) for ids in now)
    job.summary(documents=sum(len(ids) for ids in now), new_documents=added, embedding=stage.embedding)


def _made_here(job: Job, name: str) -> bool:
    return job.exchange.exists(f"{SEGMENTS}/{name}")


class Indexing:
    """Makes segments of slices of the documents.

    Args:
        earlier: the id of an earlier index, or nothing. What is new beside two indexes is not the same, though the documents be.
        known: digests of the documents that it holds.
    """

    def __init__(self, job: Job, stage: Index, earlier: str, known: set[str]) -> None:
        self._job, self._stage, self._earlier, self._known = job, stage, earlier, known
        self._terms = Terms(stage.language)
        self._embedding = open_embedding(stage.embedding, job.base) if stage.embedding else None

    def __call__(self, piece: Slice) -> int:
        documents = self._job.table(piece, COLUMNS)
        digests = digests_of(documents)
        name = part_name(piece.index, [self._earlier, *digests])
        if name in self._job.committed():
            return piece.rows
        rows: list[dict[str, Any]] = []
        empty: list[dict[str, Any]] = []
        new = [digest not in self._known for digest in digests]
        for document in documents.append_column("digest", pa.array(digests)).filter(pa.array(new)).to_pylist():
            found = passages(document, self._stage.words)
            rows += found
            if not found:
                empty.append({**document, "reason": "empty"})
        segment = self._segment(rows)
        self._job.exchange.put(f"{SEGMENTS}/{name}", segment.encoded())
        self._job.commit(name, segment.rows, pa.Table.from_pylist(empty, EMPTY) if empty else None)
        return piece.rows

    def _segment(self, rows: list[dict[str, Any]]) -> Segment:
        texts = [f"{row['heading']}\n{row['text']}" if row["heading"] else row["text"] for row in rows]
        vectors = None
        if self._embedding is not None:
            with threadpool_limits(1):
                vectors = self._embedding.texts(texts).astype(np.float16)
        return Segment(table("Passage", rows), postings([self._terms(text) for text in texts]), vectors)


def digests_of(documents: pa.Table) -> list[str]:
    """What tells documents from what they were before: an id of one's own stays when the text changes. All are looked at each time, so
    in as few steps as there can be."""
    columns = [documents[name].cast(pa.large_binary()).to_pylist() for name in COLUMNS]
    return [
        xxhash.xxh3_128_hexdigest(b"\0".join([one, b"%d" % len(text or b""), text or b"", source or b"", facts or b""]))
        for one, text, source, facts in zip(*columns, strict=True)
    ]


def passages(document: dict[str, Any], words: int) -> list[dict[str, Any]]:
    """A document's passages as rows. It has a `digest`, too (`digests_of`)."""
    text: str = document["text"] or ""
    facts: Any = json.loads(document["metadata"]) if document["metadata"] else {}
    code = isinstance(facts, dict) and isinstance(facts.get("suffix"), str)
    rows: list[dict[str, Any]] = []
    at = byte = 0
    line = 1
    for one in cut(text, words, code):
        byte += len(text[at : one.start].encode("utf-8", "surrogatepass"))
        line += text.count("\n", at, one.start)
        at = one.start
        passage = text[one.start : one.end]
        rows.append({
            "id": row_id("Passage", document["digest"], one.start, one.end),
            "parents": [document["id"]],
            "document": document["id"], "text": passage, "heading": one.heading, "source": document["source"] or "",
            "start": one.start, "end": one.end, "byte": byte, "line": line, "metadata": document["metadata"],
            "digest": document["digest"],
        })  # fmt: skip
    return rows


def _documents_of(earlier: Artifact, facts: dict[str, Any]) -> set[str]:
    """Digests of the documents that the earlier index holds.

    Raises:
        UserError: it was made in another way.
    """
    then: dict[str, Any] = earlier.read_json(FACTS)
    for name, value in facts.items():
        if then[name] != value:
            told = f"{str(then[name])[:40]}, now {str(value)[:40]}"
            raise UserError(
                f"the index {earlier.id} was made with another `{name}` ({told}), so nothing of it can be kept. Leave the input `index` "
                "out, and all is made anew."
            )
    return set(earlier.to_table(["digest"]).column("digest").unique().to_pylist())


def _keep(job: Job, earlier: Artifact, now: list[list[str]]) -> dict[str, bytes]:
    """Commit what stays of an earlier index as it is; by name, the segments that something was taken out of or that were put together."""
    stays = {one for ids in now for one in ids}
    few, kept = list[Segment](), dict[str, bytes]()
    names = [name.removeprefix("data/").removesuffix(".parquet") for name in earlier.parts()]
    small = {name for name in names if earlier.manifest["files"][f"data/{name}.parquet"]["rows"] < SMALL}
    for name in names:
        digests = earlier.read_table(f"data/{name}.parquet", ["digest"])["digest"].to_pylist()
        gone = np.array([one not in stays for one in digests])
        if gone.all():
            continue
        if len(small) > FEW and name in small:
            few.append(_opened(earlier, name).without(gone))
        elif not gone.any():
            job.copy_part(name, earlier)
            job.copy_file(_file(name), earlier)
        else:
            _commit(job, name, _opened(earlier, name).without(gone), kept)
    if few:
        whole = united_segments(few)
        _commit(job, part_name(0, whole.rows["id"].to_pylist()), whole, kept)
    return kept


def _commit(job: Job, name: str, segment: Segment, kept: dict[str, bytes]) -> None:
    job.commit(name, segment.rows)
    kept[name] = segment.encoded()


def united_segments(segments: list[Segment]) -> Segment:
    """Segments as one, their passages one after the other."""
    vectors = [one.vectors for one in segments if one.vectors is not None]
    rows = pa.concat_tables([one.rows for one in segments])
    return Segment(rows, joined([one.postings for one in segments]), np.concatenate(vectors) if vectors else None)


def _file(name: str) -> str:
    return f"{SEGMENTS}/{name}.safetensors"


def _opened(earlier: Artifact, name: str) -> Segment:
    arrays, rows = load(earlier.read_file(_file(name))), earlier.read_table(f"data/{name}.parquet")
    vectors = arrays.pop("vectors", None)
    return Segment(rows, Postings.from_arrays(arrays), vectors)
