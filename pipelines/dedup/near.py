"""Which documents are duplicates of which: candidates from equal bands, each verified by exact Jaccard.

Documents are gone through from the one to keep first to the one to keep last. Each is compared with the documents kept
so far that share a band with it; it is a duplicate if one of them is verified to be as similar as wanted, else it is
kept. So every removed document is verified against the one kept in its place (no chains: A like B, B like C removes C
only if it is like A), no pair of kept documents that was found is over the threshold, a bucket of a million copies
costs a million comparisons rather than half a billion, and the result depends on nothing but the ranks.

The fifth phase: a task a batch of candidates, which leaves

    removed     by group of the removed one: a document, the one kept in its place, how like each other they are
    asked       by group of the kept one: the same pairs
    evidence    by group of the removed ones: the sets of those kept in their place
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.stage.job import Job
from pipelines.dedup.components import CONNECTED
from pipelines.dedup.minhash import Banding
from pipelines.dedup.preference import ordered
from pipelines.dedup.sets import SETS
from pipelines.dedup.shuffle import Columns, Shuffle, Table, ends_of, joined, stretches
from pipelines.dedup.stage import Dedup
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array

RESOLVED = "resolved"
# Signatures of a pair at the threshold agree in fewer places than this many standard deviations below what is expected
# once in a million pairs; such a pair is not worth reading.
PREFILTER_SIGMAS = 5.0
MAPPED = 1 << 28  # bytes of a batch's sets above which they are read through a mapped file

_resolve = kernel("pipelines.kernels.clusters", "resolve")
_connect = kernel("pipelines.kernels.clusters", "connect")
_similarities = kernel("pipelines.kernels.clusters", "similarities")


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


class Resolving:
    """
    Args:
        begins: (groups + 1,) the number of the first document of each group.
        fixed: documents before this one stay whatever they are like.
    """

    def __init__(self, job: Job, stage: Dedup, folder: str, banding: Banding, begins: Array, fixed: int) -> None:
        self._job, self._shuffle, self._stage, self._banding = job, Shuffle(job, folder), stage, banding
        self._begins, self._fixed = begins, fixed
        spread = np.sqrt(stage.threshold * (1 - stage.threshold) / banding.permutations)
        self._least = max(stage.threshold - PREFILTER_SIGMAS * spread, 0.0)

    def __call__(self, index: int) -> dict[str, Any]:
        name = f"{RESOLVED}/{index:06d}"
        if (known := self._shuffle.facts(name)) is not None:
            return known
        rows, values = self._rows(index)
        documents, begins = rows["document"], ends_of(rows["length"])
        membership = np.full((len(documents), self._banding.bands), -1, np.int64)
        count = 0
        for band in range(self._banding.bands):
            members, bucket, more = buckets(self._banding.keys(rows["signature"], band))
            membership[members, band] = bucket + count
            count += more
        candidates = CandidateDocuments(
            membership, count, ordered(rows["trust"], rows["worth"]), values, begins[:-1], begins[1:], rows["signature"],
            documents < self._fixed,
        )  # fmt: skip
        by, like, met, verified = candidates.resolve(self._stage.threshold, self._least, self._stage.transitive)
        gone = np.flatnonzero(by >= 0)
        # A copy of a document that went goes where that went: it is the same set of shingles.
        followers = self._shuffle.part(CONNECTED, "followers", index)
        original = np.searchsorted(documents, followers["original"])
        moved = by[original] >= 0
        original = original[moved]
        document = np.concatenate([documents[gone], followers["document"][moved]])
        place, likeness = np.concatenate([by[gone], by[original]]), np.concatenate([like[gone], like[original]])
        pair = {"document": document, "kept": documents[place], "likeness": likeness}
        facts = {"pairs_met": met, "pairs_verified": verified, "near": len(gone)}
        tables = {
            "removed": Table.sorted_by(document, self._begins, **pair),
            "asked": Table.sorted_by(pair["kept"], self._begins, document=document, kept=pair["kept"]),
            "evidence": self._evidence(document[likeness < 1], place[likeness < 1], documents, begins, values),
        }
        return self._shuffle.put(name, facts, **tables)

    def _rows(self, index: int) -> tuple[Columns, Array]:
        """The candidates of a batch in order, and their sets."""
        parts = [self._shuffle.part(f"{SETS}/{group:06d}", "sets", index) for group in range(len(self._begins) - 1)]
        sets = [part.pop("values") for part in parts]
        size = sum(map(len, sets))
        if 8 * size > MAPPED:
            with tempfile.TemporaryFile(dir=self._job.scratch) as file:
                for some in sets:
                    file.write(np.ascontiguousarray(some).data)
                file.flush()
                return joined(parts), np.asarray(np.memmap(file, np.uint64, "r"))
        return joined(parts), np.concatenate(sets)

    def _evidence(self, gone: Array, place: Array, documents: Array, begins: Array, values: Array) -> Table:
        """The sets of kept documents, once for each group of files from which documents go in their favour.

        Args:
            gone: the documents.
            place: (gone,) of the kept one among the batch's.
        """
        groups = np.searchsorted(self._begins, gone, side="right") - 1
        pairs = np.unique(groups * np.int64(len(documents)) + place)
        groups, place = np.divmod(pairs, max(len(documents), 1))
        cuts = np.searchsorted(groups, np.arange(len(self._begins)))
        length = begins[place + 1] - begins[place]
        sets = np.concatenate([values[:0], *stretches(begins[place], begins[place + 1], values)])
        columns = {"kept": documents[place], "length": length, "values": sets}
        return Table(columns, cuts, {"values": ends_of(length)[cuts]})
