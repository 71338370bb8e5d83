"""Which documents are duplicates of which: candidates from equal bands, each verified by exact Jaccard.

Documents are gone through from the one to keep first to the one to keep last. Each is compared with the documents kept
so far that share a band with it; it is a duplicate if one of them is verified to be as similar as wanted, else it is
kept. So every removed document is verified against the one kept in its place (no chains: A like B, B like C removes C
only if it is like A), no pair of kept documents that was found is over the threshold, a bucket of a million copies
costs a million comparisons rather than half a billion, and the result depends on nothing but the ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.stage.job import Job
from pipelines.dedup.signatures import Signatures
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, texts_of
from pipelines.texts.documents import Documents
from pipelines.texts.shingles import sorted_sets

_same = kernel("pipelines.kernels.clusters", "same")
_join = kernel("pipelines.kernels.clusters", "join")
_flatten = kernel("pipelines.kernels.clusters", "flatten")
_resolve = kernel("pipelines.kernels.clusters", "resolve")
_connect = kernel("pipelines.kernels.clusters", "connect")
_similarities = kernel("pipelines.kernels.clusters", "similarities")


def same(keys: Array, order: Array) -> Array:
    """Group rows with equal keys; for each row, the row of its group that comes first in `order`.

    Args:
        keys: (N, 2) uint64 digests.
        order: (N,) a permutation; the first is kept.
    """
    size = 16
    while size < 2 * len(keys):
        size *= 2
    leader = np.empty(len(keys), np.int32)
    _same(keys, order, np.full(size, -1, np.int32), leader)
    return leader


def buckets(keys: Array) -> tuple[Array, Array, int]:
    """Rows whose key is not theirs alone: (rows, bucket of each, number of buckets)."""
    order = np.argsort(
        keys
    )  # not stable, which takes five times as long: the order within a bucket is nobody's concern
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(order), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    begins = shared.copy()
    begins[1:] &= ~equal
    number = np.cumsum(begins) - 1
    return order[shared], number[shared].astype(np.int64), int(begins.sum())


@dataclass(frozen=True)
class CandidateDocuments:
    """Documents that share buckets, and what it takes to compare them.

    Attributes:
        membership: (C, bands) int64: the bucket of a candidate in each band, -1 for none.
        buckets: how many there are.
        order: (C,) int64: from the one to keep first to the one to keep last.
        values, begins, ends: the sorted set of shingles of candidate c is `values[begins[c]:ends[c]]`.
        signatures: (C, permutations) uint32.
        fixed: (C,) bool: kept whatever it is like.
    """

    membership: Array
    buckets: int
    order: Array
    values: Array
    begins: Array
    ends: Array
    signatures: Array
    fixed: Array

    def resolve(self, threshold: float, least: float, transitive: bool) -> tuple[Array, Array, int, int]:
        """Who replaces whom: (candidate kept in its place or -1, similarity to it, pairs met, pairs verified).

        Args:
            least: share of equal signature values below which a pair is not worth verifying.
            transitive: remove all but one of candidates that a chain of verified pairs connects.
        """
        count, bands = self.membership.shape
        kept_by, similarity = np.full(count, -1, np.int64), np.zeros(count)
        tally = np.zeros(2, np.int64)
        sets = self.values, self.begins, self.ends
        lists = (
            np.full(self.buckets, -1, np.int64),
            np.empty(count * bands, np.int64),
            np.empty(count * bands, np.int64),
        )
        met_by = np.full(count, -1, np.int64)
        if transitive:
            _connect(
                self.membership, self.order, *sets, self.signatures, threshold, least, *lists, met_by,
                np.ones(self.buckets, bool), np.empty(count, np.int64), kept_by, tally,
            )  # fmt: skip
            kept_by[(kept_by == np.arange(count)) | self.fixed] = -1
            gone = np.flatnonzero(kept_by >= 0)
            likeness = np.zeros(len(gone))
            _similarities(gone, kept_by[gone], *sets, likeness)
            similarity[gone] = likeness
        else:
            _resolve(
                self.membership, self.order, *sets, self.signatures, threshold, least, *lists, met_by,
                self.fixed, kept_by, similarity, tally,
            )  # fmt: skip
        return kept_by, similarity, int(tally[0]), int(tally[1])


def components(signed: Signatures, own: Array, limit: int) -> list[Array]:
    """Signatures that share a bucket with others, in groups between which no bucket is shared.

    Args:
        own: (S,) bool: signatures to look at.
        limit: bytes; a group's sets and signatures take about half of it, unless one component alone takes more.

    Returns:
        the numbers of the signatures of each group, sorted.
    """
    count = len(own)
    parent = np.arange(count, dtype=np.int32)
    shared = np.zeros(count, bool)
    passes = max(-(-count * 128 // limit), 1)  # a band's keys are sorted in memory, a range of them at a time
    cuts = [(1 << 64) * i // passes for i in range(passes + 1)]
    for band in range(signed.banding.bands):
        keys = signed.band(band)
        for low, high in itertools.pairwise(cuts):
            here = own & (keys >= np.uint64(low)) & (keys <= np.uint64(high - 1))
            places = np.flatnonzero(here).astype(np.int32)
            rows, bucket, _ = buckets(keys[here])
            _join(places[rows], bucket, parent)
            shared[places[rows]] = True
    _flatten(parent)
    places = np.flatnonzero(shared)
    if not len(places):
        return []
    each = 8 * signed.counts[signed.rows[places]].astype(np.int64) + 4 * signed.banding.permutations
    each += 24 * signed.banding.bands + 64
    by_component = np.argsort(parent[places], kind="stable")
    heads = parent[places][by_component]
    begins = np.flatnonzero(np.concatenate([[True], heads[1:] != heads[:-1]]))
    sizes = np.add.reduceat(each[by_component], begins)
    groups: list[Array] = []
    held, start = 0, 0
    for component, size in enumerate(sizes.tolist()):
        if held and held + size > limit // 2:
            groups.append(np.sort(places[by_component[start : begins[component]]]))
            held, start = 0, begins[component]
        held += size
    groups.append(np.sort(places[by_component[start:]]))
    return groups


@dataclass(frozen=True)
class Sets:
    """The sorted sets of shingles of candidates, on disk, a file a group.

    Attributes:
        documents: (C,) the candidates, sorted.
        group, begins, ends: (C,) where the set of each is.
    """

    folder: Path
    documents: Array
    group: Array
    begins: Array
    ends: Array

    @staticmethod
    def make(job: Job, texts: Documents, folder: Path, groups: list[Array], fixed: int, ngram: int) -> Sets:
        """Read the texts of candidates once; of an index's artifacts, only files that hold some."""
        documents = np.concatenate([np.zeros(0, np.int32), *groups])
        group = np.concatenate([np.zeros(0, np.int32), *(np.full(len(g), i, np.int32) for i, g in enumerate(groups))])
        order = np.argsort(documents, kind="stable")
        documents, group = documents[order], group[order]
        begins, ends = np.zeros(len(documents), np.int64), np.zeros(len(documents), np.int64)
        sizes = np.zeros(len(groups), np.int64)
        files = [(folder / f"sets-{i:05d}").open("wb") for i in range(len(groups))]
        rows = job.rows("documents")
        for start, batch in _texts(job, texts, documents, fixed):
            low, high = np.searchsorted(documents, [start, start + len(batch)])
            if high > low:
                values, cuts = sorted_sets(texts_of(batch.column("text")), documents[low:high] - start, ngram)
                lengths = np.diff(cuts, prepend=0)
                for g in np.unique(group[low:high]).tolist():
                    mine = np.flatnonzero(group[low:high] == g)
                    if len(mine) == high - low:
                        files[g].write(values.data)
                    else:
                        for i in mine.tolist():
                            files[g].write(values[cuts[i] - lengths[i] : cuts[i]].data)
                    ends[low + mine] = sizes[g] + np.cumsum(lengths[mine])
                    begins[low + mine] = ends[low + mine] - lengths[mine]
                    sizes[g] += int(lengths[mine].sum())
            job.progress(max(start + len(batch) - fixed, 0), rows, "rows", doing="verifying")
        for file in files:
            file.close()
        return Sets(folder, documents, group, begins, ends)

    def of(self, group: int) -> tuple[Array, Array, Array]:
        """(values, begins, ends) of a group, in the order of its documents."""
        mine = self.group == group
        return self._values(group), self.begins[mine], self.ends[mine]

    def stretches(self, documents: Array) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Where the sets of some candidates are, by group: (which of `documents`, values, begins, ends)."""
        places = np.searchsorted(self.documents, documents)
        for group in np.unique(self.group[places]).tolist():
            chosen = np.flatnonzero(self.group[places] == group)
            yield chosen, self._values(group), self.begins[places[chosen]], self.ends[places[chosen]]

    def _values(self, group: int) -> Array:
        """A view of the mapped file, which costs no memory of its own."""
        file = self.folder / f"sets-{group:05d}"
        return np.asarray(np.memmap(file, np.uint64, "r")) if file.stat().st_size else np.zeros(0, np.uint64)

    def places(self) -> dict[str, Array]:
        return {"documents": self.documents, "group": self.group, "begins": self.begins, "ends": self.ends}

    @staticmethod
    def load(folder: Path, known: Any) -> Sets:
        return Sets(folder, known["documents"], known["group"], known["begins"], known["ends"])


def _texts(job: Job, texts: Documents, documents: Array, fixed: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The texts of an index's files that hold one of these documents, then of all documents of the job."""
    at = 0
    for artifact in job.all("index"):
        for name in artifact.parts():
            with artifact.parquet(name) as file:
                rows = file.metadata.num_rows
                low, high = np.searchsorted(documents, [at, at + rows])
                if high > low:
                    start = at
                    for batch in file.iter_batches(1000, columns=["text"], use_threads=False):
                        yield start, batch
                        start += len(batch)
            at += rows
    for start, batch in texts.batches(["text"]):
        yield fixed + start, batch
