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

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.job import Job
from pipelines.shingles import Array, overlap, sorted_sets, texts_of
from pipelines.signatures import Signed, batches


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


@numba.njit(cache=True, nogil=True)
def _same(keys: Any, order: Any, table: Any, leader: Any) -> None:
    mask = len(table) - 1
    for row in order:
        slot = np.int64(keys[row, 0] & np.uint64(mask))
        while table[slot] >= 0:
            other = table[slot]
            if keys[other, 0] == keys[row, 0] and keys[other, 1] == keys[row, 1]:
                break
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = row
        leader[row] = table[slot]


@numba.njit(cache=True, nogil=True)
def root(parent: Any, i: Any) -> Any:
    """The representative of a set of a union-find forest; shortens the way to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True, nogil=True)
def join(rows: Any, bucket: Any, parent: Any) -> None:
    """Unite the rows of each bucket; rows of a bucket stand together, the lowest of a set represents it."""
    for i in range(1, len(rows)):
        if bucket[i] == bucket[i - 1]:
            x, y = root(parent, rows[i]), root(parent, rows[i - 1])
            parent[max(x, y)] = min(x, y)


@numba.njit(cache=True, nogil=True)
def flatten(parent: Any) -> None:
    """Let every row know its representative itself."""
    for i in range(len(parent)):
        parent[i] = root(parent, i)


def buckets(keys: Array) -> tuple[Array, Array, int]:
    """Rows whose key is not theirs alone: (rows, bucket of each, number of buckets)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(order), bool)
    shared[1:] |= equal
    shared[:-1] |= equal
    begins = shared.copy()
    begins[1:] &= ~equal
    number = np.cumsum(begins) - 1
    return order[shared], number[shared].astype(np.int64), int(begins.sum())


@numba.njit(cache=True, nogil=True)
def _similarity(own: Any, other: Any, signature: Any, others: Any, threshold: float, need: int) -> float:
    """The Jaccard similarity of two sorted sets, or -1 if it is not worth computing: below the threshold for sure."""
    equal = 0
    for p in range(len(signature)):
        equal += int(signature[p] == others[p])
    if equal < need or min(len(own), len(other)) < threshold * max(len(own), len(other)):
        return -1.0
    common = overlap(own, other)
    return common / (len(own) + len(other) - common)


@numba.njit(cache=True, nogil=True)
def connect(
    membership: Any, bucket_count: int, order: Any, values: Any, begins: Any, ends: Any, signatures: Any,
    threshold: float, least: float, parent: Any,
) -> Any:  # fmt: skip
    """Unite all candidates that a chain of verified pairs connects (see `resolve` for what goes in).

    Candidates already connected are not compared again, and a bucket whose members all are is left once a newcomer is
    connected with one of them.

    Args:
        parent: (C,) int64, out: a union-find forest; the first in `order` represents its set.

    Returns:
        (pairs met, pairs verified).
    """
    count, bands = membership.shape
    head = np.full(bucket_count, -1, np.int64)
    alike = np.ones(bucket_count, np.bool_)  # all members of the bucket are connected
    next_entry = np.full(count * bands, -1, np.int64)
    entry_of = np.empty(count * bands, np.int64)
    entries = met = verified = 0
    met_by = np.full(count, -1, np.int64)
    place_of = np.empty(count, np.int64)
    need = int(np.ceil(least * signatures.shape[1]))
    for place in range(count):
        c = order[place]
        place_of[c] = place
        parent[c] = c
        own = values[begins[c] : ends[c]]
        for band in range(bands):
            bucket = membership[c, band]
            entry = head[bucket] if bucket >= 0 else -1
            while entry >= 0:
                k = entry_of[entry]
                entry = next_entry[entry]
                x, y = root(parent, c), root(parent, k)
                if x != y and met_by[k] != c:
                    met_by[k] = c
                    met += 1
                    other = values[begins[k] : ends[k]]
                    jaccard = _similarity(own, other, signatures[c], signatures[k], threshold, need)
                    verified += int(jaccard >= 0)
                    if jaccard >= threshold:
                        if place_of[x] < place_of[y]:
                            parent[y] = x
                        else:
                            parent[x] = y
                        y = x
                if x == y and alike[bucket]:
                    break
        for band in range(bands):
            bucket = membership[c, band]
            if bucket >= 0:
                if head[bucket] >= 0 and root(parent, entry_of[head[bucket]]) != root(parent, c):
                    alike[bucket] = False
                entry_of[entries] = c
                next_entry[entries] = head[bucket]
                head[bucket] = entries
                entries += 1
    return met, verified


@numba.njit(cache=True, nogil=True)
def similarities(one: Any, two: Any, values: Any, begins: Any, ends: Any, out: Any) -> None:
    """The Jaccard similarity of each pair of candidates."""
    for i in range(len(one)):
        a, b = values[begins[one[i]] : ends[one[i]]], values[begins[two[i]] : ends[two[i]]]
        common = overlap(a, b)
        out[i] = common / (len(a) + len(b) - common)


@numba.njit(cache=True, nogil=True)
def resolve(
    membership: Any, bucket_count: int, order: Any, values: Any, begins: Any, ends: Any, signatures: Any,
    fixed: Any, threshold: float, least: float, kept_by: Any, similarity: Any,
) -> Any:  # fmt: skip
    """Go through candidates in `order`; decide for each whether it is kept, and if not, by whom it is replaced.

    Args:
        membership: (C, bands) int64: the bucket of a candidate in each band, -1 for none.
        values, begins, ends: the sorted set of shingles of candidate c is `values[begins[c]:ends[c]]`.
        signatures: (C, permutations) uint32.
        fixed: (C,) bool: kept whatever it is like.
        least: share of equal signature values below which a pair is not worth verifying.
        kept_by: (C,) int64, out: the candidate kept in its place (the most similar; of equals the first in order), or -1.
        similarity: (C,) float64, out.

    Returns:
        (pairs met, pairs verified).
    """
    count, bands = membership.shape
    head = np.full(bucket_count, -1, np.int64)  # the kept candidates of a bucket, as a linked list
    next_entry = np.full(count * bands, -1, np.int64)
    entry_of = np.empty(count * bands, np.int64)
    entries = 0
    met_by = np.full(count, -1, np.int64)
    met = verified = 0
    need = int(np.ceil(least * signatures.shape[1]))
    for place in range(count):
        c = order[place]
        best, best_place = 0.0, -1
        own = values[begins[c] : ends[c]]
        for band in range(bands):
            bucket = membership[c, band]
            entry = head[bucket] if bucket >= 0 and not fixed[c] else -1
            while entry >= 0:
                k = entry_of[entry]
                entry = next_entry[entry]
                if met_by[k] == c:
                    continue
                met_by[k] = c
                met += 1
                other = values[begins[k] : ends[k]]
                jaccard = _similarity(own, other, signatures[c], signatures[k], threshold, need)
                verified += int(jaccard >= 0)
                # `kept_by` of a kept candidate holds -2 - its place, so that ties go to the first in order
                if jaccard >= threshold and (jaccard > best or (jaccard == best and -2 - kept_by[k] < best_place)):
                    best, best_place = jaccard, -2 - kept_by[k]
        if best_place >= 0:
            kept_by[c], similarity[c] = order[best_place], best
            continue
        kept_by[c] = -2 - place
        for band in range(bands):
            bucket = membership[c, band]
            if bucket >= 0:
                entry_of[entries] = c
                next_entry[entries] = head[bucket]
                head[bucket] = entries
                entries += 1
    for c in range(count):
        if kept_by[c] <= -2:
            kept_by[c] = -1
    return met, verified


def components(signed: Signed, own: Array, limit: int) -> list[Array]:
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
    passes = max(-(-count * 64 // limit), 1)  # a band's keys are sorted in memory, a range of them at a time
    cuts = [(1 << 64) * i // passes for i in range(passes + 1)]
    for band in range(signed.banding.bands):
        for low, high in itertools.pairwise(cuts):
            keys, places = signed.band(band, low, high)
            here = own[places]
            places = places[here]
            rows, bucket, _ = buckets(keys[here])
            join(places[rows], bucket, parent)
            shared[places[rows]] = True
    flatten(parent)
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
    def make(job: Job, folder: Path, groups: list[Array], fixed: int, ngram: int) -> Sets:
        """Read the texts of candidates once; of an index's artifacts, only files that hold some."""
        documents = np.concatenate([np.zeros(0, np.int32), *groups])
        group = np.concatenate([np.zeros(0, np.int32), *(np.full(len(g), i, np.int32) for i, g in enumerate(groups))])
        order = np.argsort(documents, kind="stable")
        documents, group = documents[order], group[order]
        begins, ends = np.zeros(len(documents), np.int64), np.zeros(len(documents), np.int64)
        sizes = np.zeros(len(groups), np.int64)
        files = [(folder / f"sets-{i:05d}").open("wb") for i in range(len(groups))]
        rows = job.rows("documents")
        for start, batch in _texts(job, documents, fixed):
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

    def of(self, group: int, limit: int) -> tuple[Array, Array, Array]:
        """(values, begins, ends) of a group, in the order of its documents; mapped if larger than the limit."""
        file = self.folder / f"sets-{group:05d}"
        mine = self.group == group
        if file.stat().st_size > limit:
            return np.asarray(np.memmap(file, np.uint64, "r")), self.begins[mine], self.ends[mine]
        return np.fromfile(file, np.uint64), self.begins[mine], self.ends[mine]

    def document(self, document: int) -> Array:
        """The set of one candidate."""
        i = int(np.searchsorted(self.documents, document))
        count = int(self.ends[i] - self.begins[i])
        return np.fromfile(self.folder / f"sets-{self.group[i]:05d}", np.uint64, count, offset=8 * int(self.begins[i]))

    def places(self) -> dict[str, Array]:
        return {"documents": self.documents, "group": self.group, "begins": self.begins, "ends": self.ends}

    @staticmethod
    def load(folder: Path, known: Any) -> Sets:
        return Sets(folder, known["documents"], known["group"], known["begins"], known["ends"])


def _texts(job: Job, documents: Array, fixed: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The texts of an index's files that hold one of these documents, then of all documents of the job."""
    at = 0
    for artifact in job.all("index"):
        for name in artifact.parts():
            rows = pq.read_metadata(artifact.path / name).num_rows
            low, high = np.searchsorted(documents, [at, at + rows])
            if high > low:
                with pq.ParquetFile(artifact.path / name) as file:
                    start = at
                    for batch in file.iter_batches(1000, columns=["text"]):
                        yield start, batch
                        start += len(batch)
            at += rows
    for start, batch in batches(job.all("documents"), ["text"]):
        yield fixed + start, batch
