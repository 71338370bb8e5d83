"""`dedup`: documents -> the documents without copies of them. A removed row names the one kept and how like it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.stage.stage import NotIdentity, Port, Stage, port
from pipelines.dedup.minhash import Banding, choose_banding
from pipelines.dedup.near import Candidates, Sets, buckets, components, same
from pipelines.dedup.semantic import embed, near
from pipelines.dedup.signatures import Signed, digests
from pipelines.mix.stage import numbers
from pipelines.texts.columns import column, strings
from pipelines.texts.documents import Documents
from pipelines.texts.heap import trim
from pipelines.texts.shingles import Array, shared_runs, texts_of

# Signatures of a pair at the threshold agree in fewer places than this many standard deviations below what is expected
# once in a million pairs; such a pair is not worth reading.
PREFILTER_SIGMAS = 5.0
PART_ROWS, PART_BYTES = 10_000, 32 << 20
TEXTS = 0.6  # of the memory: for texts, which else are read for each pass anew
EVIDENCE = 240  # characters of a shared passage that are shown
NONE_NEAR = np.zeros(0, np.int64), np.zeros(0)


class Dedup(Stage):
    """Remove documents that are copies, or nearly copies, of another one; or parts of documents that stand elsewhere, too.

    `exact`: the same text; by `level`, the same paragraph or line, which is cut out. `minhash`: also texts whose sets of
    word n-grams have a Jaccard similarity of at least `threshold`; candidates come from MinHash signatures, and each
    removal is verified on the sets themselves against the very document that is kept. Texts of at most `ngram` words
    are compared as their whole sequence of words, texts without a word byte by byte. `substring`: cut out what has
    `passage` words in a row that stand in a document before, too. `semantic`: texts whose embeddings by a model have a
    cosine of at least `threshold`.
    """

    takes: ClassVar[dict[str, Port]] = {
        "documents": port("Document", many=True),
        "index": port("Document", many=True, optional=True),
        "model": port("Model", optional=True),
    }
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    narrows: ClassVar[bool] = True
    version: ClassVar[int] = 2

    method: Literal["exact", "minhash", "substring", "semantic"] = "minhash"
    level: Literal["document", "paragraph", "line"] = Field(
        "document", description="With `method: exact`: what is compared, and removed."
    )
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity (or cosine) that makes a duplicate.")
    ngram: int = Field(5, ge=1, description="Words of a shingle.")
    recall: float = Field(0.99, gt=0, lt=1, description="Share of pairs over the threshold that should be found.")
    permutations: int = Field(128, ge=1, le=1024, description="Values of a signature, at most.")
    passage: int = Field(50, ge=2, description="With `method: substring`: words in a row that make a repeat.")
    min_words: int = Field(3, ge=1, description="Paragraphs and lines of fewer words are left alone.")
    keep: Literal["longest", "first", "best"] = Field(
        "longest",
        description="Which of several copies stays: the longest in bytes, the first, or the one with the highest "
        "`quality`; of equals the first.",
    )
    quality: str | None = Field(
        None, description="With `keep: best`: the column, or field of `metadata`, with a number; without one is worst."
    )
    prefer: list[str] = Field(
        default_factory=lambda: [],
        description="Patterns of `source` (`wiki/*`), the most trusted first: they come before `keep`.",
    )
    transitive: bool = Field(
        False, description="Remove all but one of documents that a chain of verified pairs connects."
    )
    save_index: bool = Field(False, description="Keep signatures, so that a later `dedup` can take this as `index`.")
    model: Annotated[str | None, NotIdentity] = Field(
        None, description="With `method: semantic`: a folder in the Hugging Face layout, or a hub name."
    )
    memory_gb: Annotated[float, NotIdentity] = Field(
        1.0, gt=0, description="Memory for what grows with the text; beyond it, work is cut up and waits on disk."
    )

    @model_validator(mode="after")
    def _fields_fit(self) -> Dedup:
        if self.level != "document" and self.method != "exact":
            raise ValueError(f"`level: {self.level}` needs `method: exact`, found {self.method}.")
        if (self.keep == "best") != (self.quality is not None):
            raise ValueError("`keep: best` and `quality` need each other: `quality` names the column to compare.")
        if self.transitive and self.method != "minhash":
            raise ValueError(f"`transitive` needs `method: minhash`, found {self.method}.")
        if self.save_index and self.method != "minhash":
            raise ValueError(f"`save_index` needs `method: minhash`, found {self.method}.")
        return self

    def sources(self, base: str) -> dict[str, str]:
        if self.model is None:
            return {}
        from engine.store.digest import digest_file

        folder = Path(base) / self.model
        if not folder.is_dir():
            return {"model": f"hub:{self.model}"}
        return {f"model/{f.name}": digest_file(f) for f in sorted(folder.iterdir()) if f.is_file()}

    def run(self, job: Job) -> None:
        documents = Documents(job.all("documents"), int(TEXTS * self.memory_gb * 1e9))
        if self.method != "minhash" and job.all("index"):
            raise UserError(f"the input `index` is for `method: minhash`, found {self.method}.")
        if self.method == "substring" or self.level != "document":
            from pipelines.dedup.repeats import remove_repeats  # imports numba, as the other methods need not

            unit = "passage" if self.method == "substring" else self.level
            order = self._order(documents, None, 0) if self.prefer or self.keep == "best" else None
            remove_repeats(job, unit, self.passage, self.min_words, order, int(self.memory_gb * 1e9))
            return
        file = job.scratch / "decided.npz"
        if file.exists():
            decision = Decision.load(file)
        else:
            shutil.rmtree(job.scratch / "signatures", ignore_errors=True)
            decision = self._decide(job, documents)
            decision.save(file)
        trim()
        self._write(job, documents, decision)
        shutil.rmtree(job.scratch / "signatures", ignore_errors=True)

    def banding(self) -> Banding:
        return choose_banding(self.threshold, self.recall, self.permutations)

    def _decide(self, job: Job, documents: Documents) -> Decision:
        if self.method == "minhash":
            return self._minhash(job, documents)
        if self.method == "semantic":
            vectors, lengths = embed(job, self.model)
            order = self._order(documents, lengths, 0)
            kept_by, similarity = near(vectors, order, self.threshold, int(self.memory_gb * 1e9))
            gone = np.flatnonzero(kept_by >= 0)
            return Decision(kept_by, gone, similarity[gone], {"semantic": len(gone)})
        keys: list[Array] = [np.zeros((0, 2), np.uint64)]
        lengths_: list[Array] = [np.zeros(0, np.int64)]
        for _, batch in documents.batches(["text"], keep=True):
            texts = texts_of(batch.column("text"))
            keys.append(digests(texts))
            lengths_.append(np.diff(texts.offsets))
        kept_by = _copies(np.concatenate(keys), self._order(documents, np.concatenate(lengths_), 0))
        return Decision(kept_by, *NONE_NEAR, {"exact": int((kept_by >= 0).sum())})

    def _order(self, documents: Documents, lengths: Array | None, fixed: int) -> Array:
        """The documents in the order of preference; those of an index, the first `fixed` ones, come first."""
        count = documents.rows
        keys: list[Array] = []  # the first one counts least
        if self.keep == "longest" and lengths is not None:
            keys.append(-lengths[fixed:])
        if self.prefer or self.keep == "best":
            value, trust = np.zeros(count), np.zeros(count, np.int32)
            for start, batch in documents.batches():
                place = slice(start, start + len(batch))
                if self.quality is not None:
                    value[place] = -np.nan_to_num(numbers(batch, self.quality, "quality"), nan=-np.inf)
                if self.prefer:
                    trust[place] = _trust(batch, self.prefer)
            keys += [value, trust] if self.keep == "best" else [trust]
        order = np.arange(fixed + count, dtype=np.int32)
        if keys:
            order[fixed:] = fixed + (np.lexsort(keys) if len(keys) > 1 else np.argsort(keys[0], kind="stable"))
        return order

    def _minhash(self, job: Job, documents: Documents) -> Decision:
        banding = self.banding()
        chances = ", ".join(f"{chance:.1%} at {like:g}" for like, chance in banding.curve()[8::2])
        job.say(f"{banding.bands} bands of {banding.rows} rows; a pair is compared with probability {chances}.")
        signed = Signed.make(job, documents, job.scratch / "signatures", self.ngram, banding, job.all("index"))
        count = len(signed.counts)
        order = self._order(documents, signed.lengths(), signed.fixed)
        kept_by = _copies(signed.keys(), order)
        kept_by[: signed.fixed] = -1
        rank = np.empty(count, np.int32)
        rank[order] = np.arange(count, dtype=np.int32)
        del order
        facts = {"exact": int((kept_by >= 0).sum())}
        sets, removed, likeness = self._near(job, documents, signed, rank, kept_by, facts)
        # A copy of a document that went goes where that went: it is the same set of shingles.
        moved = np.flatnonzero((kept_by >= 0) & (kept_by[kept_by] >= 0))
        likeness = np.concatenate([likeness, likeness[np.searchsorted(removed, kept_by[moved])]])
        kept_by[moved] = kept_by[kept_by[moved]]
        removed = np.concatenate([removed, moved])
        by_number = np.argsort(removed)
        facts |= {"bands": banding.bands, "rows": banding.rows, "curve": banding.curve()}
        facts |= {"expected_recall": round(banding.recall(self.threshold), 4)}
        if self.save_index:
            kept = np.flatnonzero(kept_by[signed.fixed :] < 0) + signed.fixed
            signed.save_index(job.output / "index", kept, self.ngram)
        return Decision(kept_by, removed[by_number], likeness[by_number], facts, signed.fixed, sets)

    def _near(
        self, job: Job, documents: Documents, signed: Signed, rank: Array, kept_by: Array, facts: dict[str, Any]
    ) -> tuple[Sets, Array, Array]:
        """Find near-duplicates among documents that `kept_by` keeps, and enter them there: (sets of
        candidates, the numbers of those removed, sorted, how like each is to the one kept)."""
        limit = int(self.memory_gb * 1e9)
        own = kept_by[signed.rows] < 0  # signatures of documents that are still there
        groups = components(signed, own, limit)
        trim()
        facts |= {"candidates": sum(map(len, groups)), "pairs_met": 0, "pairs_verified": 0, "near": 0}
        facts["groups"] = len(groups)
        members_of = [signed.rows[places] for places in groups]
        sets = Sets.make(job, documents, job.scratch / "signatures", members_of, signed.fixed, self.ngram)
        spread = np.sqrt(self.threshold * (1 - self.threshold) / signed.banding.permutations)
        least = max(self.threshold - PREFILTER_SIGMAS * spread, 0.0)
        removed, likeness = [NONE_NEAR[0]], [NONE_NEAR[1]]
        for index, places in enumerate(groups):
            members = members_of[index]
            membership = np.full((len(places), signed.banding.bands), -1, np.int64)
            bucket_count = 0
            for band in range(signed.banding.bands):
                rows, bucket, count = buckets(signed.band(band, places))
                membership[rows, band] = bucket + bucket_count
                bucket_count += count
            candidates = Candidates(
                membership, bucket_count, np.argsort(rank[members], kind="stable"), *sets.of(index),
                signed.signatures(places), members < signed.fixed,
            )  # fmt: skip
            replaced, found, met, verified = candidates.resolve(self.threshold, least, self.transitive)
            gone = replaced >= 0
            kept_by[members[gone]] = members[replaced[gone]]
            removed.append(members[gone].astype(np.int64))
            likeness.append(found[gone])
            facts["pairs_met"] += met
            facts["pairs_verified"] += verified
            facts["near"] += int(gone.sum())
        gone = np.concatenate(removed)
        by_number = np.argsort(gone)
        return sets, gone[by_number], np.concatenate(likeness)[by_number]

    def _write(self, job: Job, documents: Documents, decision: Decision) -> None:
        kept_by, done, fixed = decision.kept_by, job.committed(), decision.fixed
        wanted = np.unique(kept_by[kept_by >= 0])
        names = wanted, Documents([*job.all("index"), *job.all("documents")]).ids_of(wanted)
        total = len(kept_by) - fixed
        index, size, held = 0, 0, list[tuple[int, pa.RecordBatch]]()
        for start, batch in documents.batches(last=True):
            held.append((fixed + start, batch))
            size += batch.nbytes
            if (
                size < PART_BYTES
                and start + len(batch) - (held[0][0] - fixed) < PART_ROWS
                and start + len(batch) < total
            ):
                continue
            name = part_name(index, [identity for _, b in held for identity in b.column("id").to_pylist()])
            if name not in done:
                # One by one, so that a part isn't in memory twice.
                split = [self._split(*held.pop(0), decision, names) for _ in range(len(held))]
                rejected = [table for _, table in split if len(table)]
                job.commit(
                    name,
                    pa.concat_tables([table for table, _ in split], promote_options="default"),
                    pa.concat_tables(rejected, promote_options="default") if rejected else None,
                )
            index, size, held = index + 1, 0, []
            job.progress(start + len(batch), total, "rows", doing="writing")
        sizes = np.unique(kept_by[kept_by >= 0], return_counts=True)[1] + 1
        job.summary(
            documents=total,
            kept=int((kept_by[fixed:] < 0).sum()),
            clusters=len(sizes),
            largest_clusters=sorted(sizes.tolist(), reverse=True)[:10],
            **decision.facts,
        )

    def _split(
        self, at: int, batch: pa.RecordBatch, decision: Decision, names: tuple[Array, pa.Array]
    ) -> tuple[pa.Table, pa.Table]:
        """(kept, rejected) rows of a batch whose first row is document `at`."""
        table = pa.Table.from_batches([batch])
        by = decision.kept_by[at : at + len(batch)]
        gone = by >= 0
        if not gone.any():
            return table, table.slice(0, 0)
        by, like = by[gone], decision.likeness_of(at, at + len(batch))[gone]
        rejected = table.filter(column(gone))
        kept_id = names[1].take(column(np.searchsorted(names[0], by)))
        values, which = np.unique(like, return_inverse=True)
        measured = strings([f"{j:.4f} like " for j in values.tolist()]).take(column(which))
        nothing = strings([""]).take(column(np.zeros(len(by), np.int64)))
        detail = pc.call_function("binary_join_element_wise", [measured, kept_id, nothing])
        reason = strings(["duplicate", "near_duplicate"]).take(column((like < 1).astype(np.int64)))
        for name, values in (
            ("kept_id", kept_id),
            ("cosine" if self.method == "semantic" else "jaccard", column(like)),
            ("evidence", self._evidence(rejected, by, like, decision.sets)),
            ("reason", reason),
            ("detail", detail),
        ):
            rejected = rejected.append_column(name, values)
        return table.filter(column(~gone)), rejected

    def _evidence(self, rejected: pa.Table, by: Array, like: Array, sets: Sets | None) -> pa.Array:
        """Of each removed text, the beginning of the first passage that stands in the kept one as well."""
        text = rejected.column("text").combine_chunks()
        begun = pc.call_function("utf8_slice_codeunits", [text], pc.SliceOptions(0, EVIDENCE))
        near = np.flatnonzero(like < 1)
        if not len(near):
            return begun
        texts = texts_of(text)
        spans = np.zeros((len(near), 2), np.int64)
        for chosen, values, begins, ends in sets.stretches(by[near]) if sets is not None else ():
            spans[chosen] = shared_runs(texts, near[chosen], values, begins, ends, self.ngram)
        passages = [texts.data[begin:end].tobytes().decode()[:EVIDENCE] for begin, end in spans.tolist()]
        return pc.call_function("replace_with_mask", [begun, column(like < 1), strings(passages)])


@dataclass(frozen=True)
class Decision:
    """For each document, the one kept in its place (-1: itself).

    `near` are the removed ones, sorted, that are no exact copy, `likeness` how like the kept one each of them is. The first
    `fixed` documents are those of an index. `sets` holds the shingles of candidates, on disk.
    """

    kept_by: Array
    near: Array
    likeness: Array
    facts: dict[str, Any]
    fixed: int = 0
    sets: Sets | None = None

    def likeness_of(self, begin: int, end: int) -> Array:
        """(end - begin,) of these documents; 1 for copies."""
        made = np.ones(end - begin)
        low, high = np.searchsorted(self.near, [begin, end])
        made[self.near[low:high] - begin] = self.likeness[low:high]
        return made

    def save(self, file: Path) -> None:
        partial = file.with_suffix(".partial.npz")
        facts = json.dumps({"facts": self.facts, "fixed": self.fixed})
        places: dict[str, Any] = {} if self.sets is None else self.sets.places()
        made: dict[str, Any] = {"kept_by": self.kept_by, "near": self.near, "likeness": self.likeness}
        np.savez(partial, facts=np.array(facts), **made, **places)
        partial.replace(file)

    @staticmethod
    def load(file: Path) -> Decision:
        with np.load(file) as known:
            said = json.loads(str(known["facts"]))
            sets = Sets.load(file.parent / "signatures", known) if "documents" in known else None
            return Decision(known["kept_by"], known["near"], known["likeness"], said["facts"], said["fixed"], sets)


def _copies(keys: Array, order: Array) -> Array:
    """For each document, the one of the same key that comes first in `order`; -1 for that one itself."""
    leader = same(keys, order)
    leader[leader == np.arange(len(leader), dtype=np.int32)] = -1
    return leader


def _trust(batch: pa.RecordBatch, patterns: list[str]) -> Array:
    """The number of the first pattern that each row's `source` fits."""
    column = batch.column("source").dictionary_encode()
    found = [
        next((i for i, pattern in enumerate(patterns) if fnmatchcase(name or "", pattern)), len(patterns))
        for name in column.dictionary.to_pylist()
    ]
    indices = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.array([*found, len(patterns)], np.int32)[indices]
