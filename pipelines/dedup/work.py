"""Deduplicating: what is a copy of what is decided for all documents at once, and then they are written."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import UserError
from engine.stage.job import Job, part_name
from pipelines.dedup.decision import Decision
from pipelines.dedup.minhash import choose_banding
from pipelines.dedup.near import CandidateDocuments, Sets, buckets, components, same
from pipelines.dedup.signatures import Signatures, digests
from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, column, numbers, strings, texts_of
from pipelines.texts.documents import Documents, trim
from pipelines.texts.shingles import shared_runs

# Signatures of a pair at the threshold agree in fewer places than this many standard deviations below what is expected
# once in a million pairs; such a pair is not worth reading.
PREFILTER_SIGMAS = 5.0
PART_ROWS, PART_BYTES = 10_000, 32 << 20
TEXTS = 0.6  # of the memory: for texts, which else are read for each pass anew
EVIDENCE = 240  # characters of a shared passage that are shown
NONE_NEAR = np.zeros(0, np.int64), np.zeros(0)


def deduplicate(stage: Dedup, job: Job) -> None:
    documents = Documents(job.all("documents"), int(TEXTS * stage.memory_gb * 1e9))
    if stage.method != "minhash" and job.all("index"):
        raise UserError(f"the input `index` is for `method: minhash`, found {stage.method}.")
    if stage.method == "substring" or stage.level != "document":
        from pipelines.dedup.repeats import remove_repeats  # imports numba, which the other methods do without

        unit = "passage" if stage.method == "substring" else stage.level
        order = _order(stage, documents, None, 0) if stage.prefer or stage.keep == "best" else None
        remove_repeats(job, unit, stage.passage, stage.min_words, order, int(stage.memory_gb * 1e9))
        return
    file = job.scratch / "decided.npz"
    if file.exists():
        decision = Decision.load(file)
    else:
        shutil.rmtree(job.scratch / "signatures", ignore_errors=True)
        decision = _decide(stage, job, documents)
        for sets in sorted((job.scratch / "signatures").glob("sets-*")):
            job.note(sets)
        decision.save(job, file)
    trim()
    _write(stage, job, documents, decision)
    shutil.rmtree(job.scratch / "signatures", ignore_errors=True)


def _decide(stage: Dedup, job: Job, documents: Documents) -> Decision:
    if stage.method == "minhash":
        return _by_minhash(stage, job, documents)
    if stage.method == "semantic":
        from pipelines.dedup.semantic import embed, near  # imports torch, which the other methods do without

        vectors, lengths = embed(job, stage.model)
        order = _order(stage, documents, lengths, 0)
        kept_by, similarity = near(vectors, order, stage.threshold, int(stage.memory_gb * 1e9))
        gone = np.flatnonzero(kept_by >= 0)
        return Decision(kept_by, gone, similarity[gone], {"semantic": len(gone)})
    keys: list[Array] = [np.zeros((0, 2), np.uint64)]
    sizes: list[Array] = [np.zeros(0, np.int64)]
    for _, batch in documents.batches(["text"], keep=True):
        texts = texts_of(batch.column("text"))
        keys.append(digests(texts))
        sizes.append(np.diff(texts.offsets))
    kept_by = _copies(np.concatenate(keys), _order(stage, documents, np.concatenate(sizes), 0))
    return Decision(kept_by, *NONE_NEAR, {"exact": int((kept_by >= 0).sum())})


def _order(stage: Dedup, documents: Documents, lengths: Array | None, fixed: int) -> Array:
    """The documents in the order of preference; those of an index, the first `fixed` ones, come first."""
    count = documents.rows
    keys: list[Array] = []  # the first one counts least
    if stage.keep == "longest" and lengths is not None:
        keys.append(-lengths[fixed:])
    if stage.prefer or stage.keep == "best":
        value, trust = np.zeros(count), np.zeros(count, np.int32)
        for start, batch in documents.batches():
            place = slice(start, start + len(batch))
            if stage.quality is not None:
                value[place] = -np.nan_to_num(numbers(batch, stage.quality, "quality"), nan=-np.inf)
            if stage.prefer:
                trust[place] = _trust(batch, stage.prefer)
        keys += [value, trust] if stage.keep == "best" else [trust]
    order = np.arange(fixed + count, dtype=np.int32)
    if keys:
        order[fixed:] = fixed + (np.lexsort(keys) if len(keys) > 1 else np.argsort(keys[0], kind="stable"))
    return order


def _by_minhash(stage: Dedup, job: Job, documents: Documents) -> Decision:
    banding = choose_banding(stage.threshold, stage.recall, stage.permutations)
    chances = ", ".join(f"{chance:.1%} at {like:g}" for like, chance in banding.curve()[8::2])
    job.say(f"{banding.bands} bands of {banding.rows} rows; a pair is compared with probability {chances}.")
    signed = Signatures.make(job, documents, job.scratch / "signatures", stage.ngram, banding, job.all("index"))
    count = len(signed.counts)
    order = _order(stage, documents, signed.lengths(), signed.fixed)
    kept_by = _copies(signed.keys(), order)
    kept_by[: signed.fixed] = -1
    rank = np.empty(count, np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    del order
    facts = {"exact": int((kept_by >= 0).sum())}
    sets, removed, likeness = _near_duplicates(stage, job, documents, signed, rank, kept_by, facts)
    # A copy of a document that went goes where that went: it is the same set of shingles.
    moved = np.flatnonzero((kept_by >= 0) & (kept_by[kept_by] >= 0))
    likeness = np.concatenate([likeness, likeness[np.searchsorted(removed, kept_by[moved])]])
    kept_by[moved] = kept_by[kept_by[moved]]
    removed = np.concatenate([removed, moved])
    by_number = np.argsort(removed)
    facts |= {"bands": banding.bands, "rows": banding.rows, "curve": banding.curve()}
    facts |= {"expected_recall": round(banding.recall(stage.threshold), 4)}
    if stage.save_index:
        kept = np.flatnonzero(kept_by[signed.fixed :] < 0) + signed.fixed
        signed.save_index(job.output / "index", kept, stage.ngram)
    return Decision(kept_by, removed[by_number], likeness[by_number], facts, signed.fixed, sets)


def _near_duplicates(
    stage: Dedup, job: Job, documents: Documents, signed: Signatures, rank: Array, kept_by: Array, facts: dict[str, Any]
) -> tuple[Sets, Array, Array]:
    """Find near-duplicates among documents that `kept_by` keeps, and enter them there: (sets of
    candidates, the numbers of those removed, sorted, how like each is to the one kept)."""
    limit = int(stage.memory_gb * 1e9)
    own = kept_by[signed.rows] < 0  # signatures of documents that are still there
    groups = components(signed, own, limit)
    trim()
    facts |= {"candidates": sum(map(len, groups)), "pairs_met": 0, "pairs_verified": 0, "near": 0}
    facts["groups"] = len(groups)
    members_of = [signed.rows[places] for places in groups]
    sets = Sets.make(job, documents, job.scratch / "signatures", members_of, signed.fixed, stage.ngram)
    spread = np.sqrt(stage.threshold * (1 - stage.threshold) / signed.banding.permutations)
    least = max(stage.threshold - PREFILTER_SIGMAS * spread, 0.0)
    removed, likeness = [NONE_NEAR[0]], [NONE_NEAR[1]]
    for index, places in enumerate(groups):
        members = members_of[index]
        membership = np.full((len(places), signed.banding.bands), -1, np.int64)
        bucket_count = 0
        for band in range(signed.banding.bands):
            rows, bucket, count = buckets(signed.band(band, places))
            membership[rows, band] = bucket + bucket_count
            bucket_count += count
        candidates = CandidateDocuments(
            membership, bucket_count, np.argsort(rank[members], kind="stable"), *sets.of(index),
            signed.signatures(places), members < signed.fixed,
        )  # fmt: skip
        replaced, similarity, met, verified = candidates.resolve(stage.threshold, least, stage.transitive)
        gone = replaced >= 0
        kept_by[members[gone]] = members[replaced[gone]]
        removed.append(members[gone].astype(np.int64))
        likeness.append(similarity[gone])
        facts["pairs_met"] += met
        facts["pairs_verified"] += verified
        facts["near"] += int(gone.sum())
    gone = np.concatenate(removed)
    by_number = np.argsort(gone)
    return sets, gone[by_number], np.concatenate(likeness)[by_number]


def _write(stage: Dedup, job: Job, documents: Documents, decision: Decision) -> None:
    kept_by, done, fixed = decision.kept_by, job.committed(), decision.fixed
    wanted = np.unique(kept_by[kept_by >= 0])
    names = wanted, Documents([*job.all("index"), *job.all("documents")]).ids_of(wanted)
    total = len(kept_by) - fixed
    index, size, held = 0, 0, list[tuple[int, pa.RecordBatch]]()
    for start, batch in documents.batches(last=True):
        held.append((fixed + start, batch))
        size += batch.nbytes
        if size < PART_BYTES and start + len(batch) - (held[0][0] - fixed) < PART_ROWS and start + len(batch) < total:
            continue
        name = part_name(index, [identity for _, b in held for identity in b.column("id").to_pylist()])
        if name not in done:
            # One by one, so that a part isn't in memory twice.
            split = [_split(stage, *held.pop(0), decision, names) for _ in range(len(held))]
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
    stage: Dedup, at: int, batch: pa.RecordBatch, decision: Decision, names: tuple[Array, pa.Array]
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
        ("cosine" if stage.method == "semantic" else "jaccard", column(like)),
        ("evidence", _evidence(rejected, by, like, decision.sets, stage.ngram)),
        ("reason", reason),
        ("detail", detail),
    ):
        rejected = rejected.append_column(name, values)
    return table.filter(column(~gone)), rejected


def _evidence(rejected: pa.Table, by: Array, like: Array, sets: Sets | None, ngram: int) -> pa.Array:
    """Of each removed text, the beginning of the first passage that stands in the kept one as well."""
    text = rejected.column("text").combine_chunks()
    begun = pc.call_function("utf8_slice_codeunits", [text], pc.SliceOptions(0, EVIDENCE))
    near = np.flatnonzero(like < 1)
    if not len(near):
        return begun
    texts = texts_of(text)
    spans = np.zeros((len(near), 2), np.int64)
    for chosen, values, begins, ends in sets.stretches(by[near]) if sets is not None else ():
        spans[chosen] = shared_runs(texts, near[chosen], values, begins, ends, ngram)
    passages = [texts.data[begin:end].tobytes().decode()[:EVIDENCE] for begin, end in spans.tolist()]
    return pc.call_function("replace_with_mask", [begun, column(like < 1), strings(passages)])


def _copies(keys: Array, order: Array) -> Array:
    """For each document, the one of the same key that comes first in `order`; -1 for that one itstage."""
    leader = same(keys, order)
    leader[leader == np.arange(len(leader), dtype=np.int32)] = -1
    return leader


def _trust(batch: pa.RecordBatch, patterns: list[str]) -> Array:
    """The number of the first pattern that each row's `source` fits."""
    sources = batch.column("source").dictionary_encode()
    first = [
        next((i for i, pattern in enumerate(patterns) if fnmatchcase(name or "", pattern)), len(patterns))
        for name in sources.dictionary.to_pylist()
    ]
    indices = sources.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.array([*first, len(patterns)], np.int32)[indices]
