"""Which documents are duplicates of which: candidates from equal bands, each verified by exact Jaccard.

Documents are gone through from the one to keep first to the one to keep last. Each is compared with the documents kept
so far that share a band with it; it is a duplicate if one of them is verified to be as similar as wanted, else it is
kept. So every removed document is verified against the one kept in its place (no chains: A like B, B like C removes C
only if it is like A), no pair of kept documents that was found is over the threshold, a bucket of a million copies
costs a million comparisons rather than half a billion, and the result depends on nothing but the ranks.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.shingles import Array, overlap


def same(keys: Array, rank: Array) -> Array:
    """Group rows with equal keys; for each row, the row of its group with the lowest rank.

    Args:
        keys: (N, 2) uint64 digests.
        rank: (N,) a permutation; the lowest is kept.
    """
    order = np.lexsort((rank, keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    leader = np.empty(len(order), np.int64)
    leader[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return leader


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
def resolve(
    membership: Any, bucket_count: int, order: Any, values: Any, begins: Any, ends: Any, signatures: Any,
    place_of: Any, threshold: float, least: float, kept_by: Any, similarity: Any,
) -> Any:  # fmt: skip
    """Go through candidates in `order`; decide for each whether it is kept, and if not, by whom it is replaced.

    Args:
        membership: (C, bands) int64: the bucket of a candidate in each band, -1 for none.
        values, begins, ends: the sorted set of shingles of candidate c is `values[begins[c]:ends[c]]`.
        signatures, place_of: the signature of candidate c is `signatures[place_of[c]]`, uint32.
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
            entry = head[bucket] if bucket >= 0 else -1
            while entry >= 0:
                k = entry_of[entry]
                entry = next_entry[entry]
                if met_by[k] == c:
                    continue
                met_by[k] = c
                met += 1
                equal = 0
                for p in range(signatures.shape[1]):
                    equal += int(signatures[place_of[c], p] == signatures[place_of[k], p])
                if equal < need:
                    continue
                other = values[begins[k] : ends[k]]
                if min(len(own), len(other)) < threshold * max(len(own), len(other)):
                    continue
                verified += 1
                common = overlap(own, other)
                jaccard = common / (len(own) + len(other) - common)
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
