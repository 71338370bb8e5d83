"""`dedup`: documents -> the documents without copies of them. A removed row names the one kept and how like it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from engine.job import Job, part_name
from engine.stage import Port, Stage, port
from pipelines.duplicates import buckets, resolve, same
from pipelines.minhash import Banding, choose_banding, permutations, sign_texts
from pipelines.shingles import Array, sorted_sets, texts_of

BATCH_ROWS = 10_000
# Signatures of a pair at the threshold agree in fewer places than this many standard deviations below what is expected
# once in a million pairs; such a pair is not worth reading.
PREFILTER_SIGMAS = 5.0


class Dedup(Stage):
    """Remove documents that are copies, or nearly copies, of another one.

    `exact`: the same text. `minhash`: also texts whose sets of word n-grams have a Jaccard similarity of at least
    `threshold`; candidates come from MinHash signatures, and each removal is verified on the sets themselves against
    the very document that is kept. Texts of at most `ngram` words are compared as their whole sequence of words, texts
    without a word byte by byte.
    """

    takes: ClassVar[dict[str, Port]] = {"documents": port("Document", many=True)}
    gives: ClassVar[str] = "Document"

    method: Literal["exact", "minhash"] = "minhash"
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity from which a document is a duplicate.")
    ngram: int = Field(5, ge=1, description="Words of a shingle.")
    recall: float = Field(0.99, gt=0, lt=1, description="Share of pairs over the threshold that should be found.")
    permutations: int = Field(128, ge=1, le=1024, description="Values of a signature, at most.")
    keep: Literal["longest", "first"] = Field(
        "longest",
        description="Which of several copies stays: the longest in bytes (of equals the first), or the first.",
    )

    def run(self, job: Job) -> None:
        file = job.scratch / "decision.npz"
        if file.exists():
            decision = Decision.load(file)
        else:
            decision = self._decide(job)
            decision.save(file)
        self._write(job, decision)
        shutil.rmtree(job.scratch / "signatures", ignore_errors=True)

    def banding(self) -> Banding:
        return choose_banding(self.threshold, self.recall, self.permutations)

    def _decide(self, job: Job) -> Decision:
        if self.method == "exact":
            keys, lengths = _text_keys(job)
            leader = same(keys, self._rank(lengths))
            gone = leader != np.arange(len(leader))
            return Decision(np.where(gone, leader, -1), gone.astype(float), {"exact": int(gone.sum())})
        banding = self.banding()
        signed = _Signed.make(job, self.ngram, banding)
        rank = self._rank(signed.lengths)
        leader = same(signed.keys, rank)
        kept_by = np.where(leader != np.arange(len(leader)), leader, -1)
        similarity = (kept_by >= 0).astype(float)
        facts = {"exact": int((kept_by >= 0).sum())}
        facts |= self._near(job, signed, rank, leader, kept_by, similarity)
        # A copy of a document that went goes where that went: it is the same set of shingles.
        followed = kept_by.copy()
        chained = np.flatnonzero((kept_by >= 0) & (kept_by[leader] >= 0) & (leader != np.arange(len(leader))))
        followed[chained], similarity[chained] = kept_by[leader[chained]], similarity[leader[chained]]
        facts |= {"bands": banding.bands, "rows": banding.rows, "curve": banding.curve()}
        facts |= {"expected_recall": round(banding.recall(self.threshold), 4)}
        return Decision(followed, similarity, facts)

    def _rank(self, lengths: Array) -> Array:
        """Place of each document in the order of preference, 0 first."""
        count = len(lengths)
        rank = np.arange(count)
        if self.keep == "longest":
            rank[np.argsort(-lengths, kind="stable")] = np.arange(count)
        return rank

    def _near(
        self, job: Job, signed: _Signed, rank: Array, leader: Array, kept_by: Array, similarity: Array
    ) -> dict[str, int]:
        """Find near-duplicates among the leaders; write what goes into `kept_by` and `similarity`."""
        own = leader[signed.rows] == signed.rows  # signatures of documents that are still there
        met: list[tuple[Array, Array]] = []
        bucket_count = 0
        for band in range(signed.banding.bands):
            rows, bucket, count = buckets(signed.band(band)[own])
            met.append((rows, bucket + bucket_count))
            bucket_count += count
        compared = np.unique(np.concatenate([rows for rows, _ in met]))
        facts = {"candidates": len(compared), "pairs_met": 0, "pairs_verified": 0, "near": 0}
        if not len(compared):
            return facts
        membership = np.full((len(compared), signed.banding.bands), -1, np.int64)
        for band, (rows, bucket) in enumerate(met):
            membership[np.searchsorted(compared, rows), band] = bucket
        place = np.flatnonzero(own)[compared]  # among the signatures
        documents = signed.rows[place]  # among the documents
        values, ends = _sets(job, documents, self.ngram)
        replaced = np.full(len(compared), -1, np.int64)
        found = np.zeros(len(compared))
        spread = np.sqrt(self.threshold * (1 - self.threshold) / signed.banding.permutations)
        least = max(self.threshold - PREFILTER_SIGMAS * spread, 0.0)
        begins = np.concatenate([[0], ends[:-1]])
        order = np.argsort(rank[documents], kind="stable")
        facts["pairs_met"], facts["pairs_verified"] = resolve(
            membership, bucket_count, order, values, begins, ends, signed.signatures(), place, self.threshold, least,
            replaced, found,
        )  # fmt: skip
        gone = replaced >= 0
        kept_by[documents[gone]] = documents[replaced[gone]]
        similarity[documents[gone]] = found[gone]
        facts["near"] = int(gone.sum())
        return facts

    def _write(self, job: Job, decision: Decision) -> None:
        kept_by, done = decision.kept_by, job.committed()
        wanted = np.unique(kept_by[kept_by >= 0])
        names = dict(zip(wanted.tolist(), _ids(job, wanted), strict=True))
        total, at = len(kept_by), 0
        for index, batch in enumerate(_batches(job)):
            name = part_name(index, batch.column("id").to_pylist())
            by, like = kept_by[at : at + len(batch)], decision.similarity[at : at + len(batch)]
            at += len(batch)
            if name not in done:
                table = pa.Table.from_batches([batch])
                gone = by >= 0
                rejected = table.filter(pa.array(gone))
                reason = ["duplicate" if j == 1 else "near_duplicate" for j in like[gone].tolist()]
                kept_id = [names[k] for k in by[gone].tolist()]
                detail = [f"{j:.4f} like {k}" for j, k in zip(like[gone].tolist(), kept_id, strict=True)]
                for column, values in (
                    ("kept_id", pa.array(kept_id, pa.string())),
                    ("jaccard", pa.array(like[gone], pa.float64())),
                    ("reason", pa.array(reason, pa.string())),
                    ("detail", pa.array(detail, pa.string())),
                ):
                    rejected = rejected.append_column(column, values)
                job.commit(name, table.filter(pa.array(~gone)), rejected)
            job.progress(at, total, "rows", doing="writing")
        sizes = np.unique(kept_by[kept_by >= 0], return_counts=True)[1] + 1
        job.summary(
            documents=total,
            kept=int((kept_by < 0).sum()),
            clusters=len(sizes),
            largest_clusters=sorted(sizes.tolist(), reverse=True)[:10],
            **decision.facts,
        )


@dataclass(frozen=True)
class Decision:
    """For each document, the one kept in its place (-1: itself) and the Jaccard similarity of the two."""

    kept_by: Array
    similarity: Array
    facts: dict[str, Any]

    def save(self, file: Path) -> None:
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, kept_by=self.kept_by, similarity=self.similarity, facts=np.array(json.dumps(self.facts)))
        partial.replace(file)

    @staticmethod
    def load(file: Path) -> Decision:
        with np.load(file) as known:
            return Decision(known["kept_by"], known["similarity"], json.loads(str(known["facts"])))


@dataclass(frozen=True)
class _Signed:
    """Digests of all documents in memory; signatures and band keys of those with two shingles or more, on disk.

    Attributes:
        keys: (N, 2) uint64: documents with equal keys have the same words.
        lengths: (N,) bytes.
        rows: (S,) which documents have a signature.
    """

    folder: Path
    banding: Banding
    keys: Array
    lengths: Array
    rows: Array

    def band(self, index: int) -> Array:
        return np.fromfile(self.folder / f"band-{index:03d}", np.uint64)

    def signatures(self) -> Array:
        """(S, permutations) uint32, mapped."""
        shape = (len(self.rows), self.banding.permutations)
        return np.asarray(np.memmap(self.folder / "signatures", np.uint32, "r", shape=shape))

    @staticmethod
    def make(job: Job, ngram: int, banding: Banding) -> _Signed:
        folder = job.scratch / "signatures"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        a, b = permutations(banding.permutations)
        keys: list[Array] = [np.zeros((0, 2), np.uint64)]
        lengths: list[Array] = [np.zeros(0, np.int64)]
        rows: list[Array] = [np.zeros(0, np.int64)]
        total, at = job.rows("documents"), 0
        files = [(folder / f"band-{band:03d}").open("wb") for band in range(banding.bands)]
        with (folder / "signatures").open("wb") as signatures:
            for batch in _batches(job, ["text"]):
                texts = texts_of(batch.column("text"))
                made = sign_texts(texts, ngram, banding, a, b)
                wordless = np.flatnonzero(made.counts == 0)
                made.keys[wordless] = _digests(batch.column("text").take(pa.array(wordless)), b"no words")
                many = np.flatnonzero(made.counts >= 2)
                signatures.write(made.signatures[many].tobytes())
                for file, band_keys in zip(files, made.bands, strict=True):
                    file.write(band_keys[many].tobytes())
                keys.append(made.keys)
                lengths.append(np.diff(texts.offsets))
                rows.append(many + at)
                at += len(batch)
                job.progress(at, total, "rows", doing="signatures")
        for file in files:
            file.close()
        return _Signed(folder, banding, np.concatenate(keys), np.concatenate(lengths), np.concatenate(rows))


def _batches(job: Job, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for artifact in job.all("documents"):
        yield from artifact.batches(columns=columns, rows=BATCH_ROWS)


def _digests(texts: pa.Array, salt: bytes = b"") -> Array:
    """(N, 2) uint64: 128 bits of XXH3 of each text."""
    made = b"".join(xxhash.xxh3_128_digest(salt + (text or "").encode()) for text in texts.to_pylist())
    return np.frombuffer(made, np.uint64).reshape(-1, 2)


def _text_keys(job: Job) -> tuple[Array, Array]:
    keys: list[Array] = [np.zeros((0, 2), np.uint64)]
    lengths: list[Array] = [np.zeros(0, np.int64)]
    for batch in _batches(job, ["text"]):
        keys.append(_digests(batch.column("text")))
        lengths.append(np.diff(texts_of(batch.column("text")).offsets))
    return np.concatenate(keys), np.concatenate(lengths)


def _sets(job: Job, documents: Array, ngram: int) -> tuple[Array, Array]:
    """The sorted sets of shingles of these documents (sorted numbers), one after the other, and where each ends.

    They are nearly as large as the text, so they are on disk, mapped: what is not looked at need not be in memory.
    """
    ends: list[Array] = [np.zeros(0, np.int64)]
    at = size = 0
    path = job.scratch / "signatures" / "sets"
    with path.open("wb") as file:
        for batch in _batches(job, ["text"]):
            low, high = np.searchsorted(documents, [at, at + len(batch)])
            if high > low:
                made, made_ends = sorted_sets(texts_of(batch.column("text")), documents[low:high] - at, ngram)
                file.write(made.data)
                ends.append(made_ends + size)
                size += len(made)
            at += len(batch)
            job.progress(at, job.rows("documents"), "rows", doing="verifying")
    return np.asarray(np.memmap(path, np.uint64, "r")), np.concatenate(ends)


def _ids(job: Job, documents: Array) -> list[str]:
    """The ids of these documents (sorted numbers)."""
    found: list[str] = []
    at = 0
    for batch in _batches(job, ["id"]):
        low, high = np.searchsorted(documents, [at, at + len(batch)])
        found += batch.column("id").take(pa.array(documents[low:high] - at)).to_pylist()
        at += len(batch)
    return found
