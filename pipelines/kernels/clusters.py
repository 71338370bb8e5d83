"""Groups of equal keys, and which candidates replace which (see `pipelines.dedup.near`)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.word_hashes import overlap


@numba.njit(cache=True, nogil=True)
def leaders(keys: Any, trust: Any, worth: Any, table: Any, leader: Any) -> None:
    """For each row, the one of the same key that stays: the least trust, then the least worth, then the first.

    Args:
        keys: (N, 2) uint64 digests.
        trust, worth: (N,) uint32 and float64.
        table: (2**k,) int64, -1, larger than N: room.
        leader: (N,) int64, out.
    """
    mask = len(table) - 1
    for row in range(len(keys)):
        slot = np.int64(keys[row, 0] & np.uint64(mask))
        while table[slot] >= 0:
            other = table[slot]
            if keys[other, 0] == keys[row, 0] and keys[other, 1] == keys[row, 1]:
                break
            slot = (slot + 1) & mask
        other = table[slot]
        if other < 0 or trust[row] < trust[other] or (trust[row] == trust[other] and worth[row] < worth[other]):
            table[slot] = row
        leader[row] = slot
    for row in range(len(keys)):
        leader[row] = table[leader[row]]


@numba.njit(cache=True, nogil=True)
def root(parent: Any, i: Any) -> Any:
    """The representative of a set of a union-find forest; shortens the way to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True, nogil=True)
def unite(edges: Any, parent: Any) -> None:
    """Unite the sets of the two ends of each edge, (N, 2); the lowest of a set represents it."""
    for i in range(len(edges)):
        x, y = root(parent, edges[i, 0]), root(parent, edges[i, 1])
        if x != y:
            parent[max(x, y)] = min(x, y)


@numba.njit(cache=True, nogil=True)
def flatten(parent: Any) -> None:
    """Let every row know its representative itself."""
    for i in range(len(parent)):
        parent[i] = root(parent, i)


@numba.njit(cache=True, nogil=True)
def _jaccard(a: Any, b: Any) -> float:
    common = overlap(a, b)
    return common / (len(a) + len(b) - common)


@numba.njit(cache=True, nogil=True)
def _similarity(own: Any, other: Any, signature: Any, others: Any, threshold: float, need: int) -> float:
    """The Jaccard similarity of two sorted sets, or -1 if it is not worth computing: below the threshold for sure."""
    equal = 0
    for p in range(len(signature)):
        equal += int(signature[p] == others[p])
    if equal < need or min(len(own), len(other)) < threshold * max(len(own), len(other)):
        return -1.0
    return _jaccard(own, other)


@numba.njit(cache=True, nogil=True)
def _enter(c: int, buckets: Any, head: Any, next_entry: Any, entry_of: Any, entries: int) -> int:
    """Put a candidate at the head of its buckets' lists, which have this many entries; returns how many they have then."""
    for bucket in buckets:
        if bucket >= 0:
            entry_of[entries] = c
            next_entry[entries] = head[bucket]
            head[bucket] = entries
            entries += 1
    return entries


@numba.njit(cache=True, nogil=True)
def connect(
    membership: Any, order: Any, values: Any, begins: Any, ends: Any, signatures: Any,
    threshold: float, least: float, head: Any, next_entry: Any, entry_of: Any, met_by: Any,
    alike: Any, place_of: Any, parent: Any, tally: Any,
) -> None:  # fmt: skip
    """Unite all candidates that a chain of verified pairs connects (see `resolve` for what goes in).

    Candidates already connected are not compared again, and a bucket whose members all are is left once a newcomer is
    connected with one of them.

    Args:
        head, next_entry, entry_of, met_by: as in `resolve`.
        alike: (buckets,) bool, true: all members of the bucket are connected.
        place_of: (C,) int64, room.
        parent: (C,) int64, out: a union-find forest; the first in `order` represents its set.
        tally: (2,) int64, out: pairs met, pairs verified.
    """
    count, bands = membership.shape
    entries = met = verified = 0
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
            if bucket >= 0 and head[bucket] >= 0 and root(parent, entry_of[head[bucket]]) != root(parent, c):
                alike[bucket] = False
        entries = _enter(c, membership[c], head, next_entry, entry_of, entries)
    tally[0], tally[1] = met, verified


@numba.njit(cache=True, nogil=True)
def similarities(one: Any, two: Any, values: Any, begins: Any, ends: Any, out: Any) -> None:
    """The Jaccard similarity of each pair of candidates."""
    for i in range(len(one)):
        out[i] = _jaccard(values[begins[one[i]] : ends[one[i]]], values[begins[two[i]] : ends[two[i]]])


@numba.njit(cache=True, nogil=True)
def resolve(
    membership: Any, order: Any, values: Any, begins: Any, ends: Any, signatures: Any,
    threshold: float, least: float, head: Any, next_entry: Any, entry_of: Any, met_by: Any,
    fixed: Any, kept_by: Any, similarity: Any, tally: Any,
) -> None:  # fmt: skip
    """Go through candidates in `order`; decide for each whether it is kept, and if not, by whom it is replaced.

    Args:
        membership: (C, bands) int64: the bucket of a candidate in each band, -1 for none.
        values, begins, ends: the sorted set of shingles of candidate c is `values[begins[c]:ends[c]]`.
        signatures: (C, permutations) uint32.
        fixed: (C,) bool: kept whatever it is like.
        least: share of equal signature values below which a pair is not worth verifying.
        head: (buckets,) int64, -1: the candidates of a bucket (kept ones) as a linked list of entries.
        next_entry, entry_of: (C * bands,) int64: the entry after an entry, and which candidate it is.
        met_by: (C,) int64, -1: the candidate that met this one last.
        kept_by: (C,) int64, -1, out: the candidate kept in its place (the most similar; of equals the first in order), or -1.
        similarity: (C,) float64, out.
        tally: (2,) int64, out: pairs met, pairs verified.
    """
    count, bands = membership.shape
    entries = met = verified = 0
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
        entries = _enter(c, membership[c], head, next_entry, entry_of, entries)
    for c in range(count):
        if kept_by[c] <= -2:
            kept_by[c] = -1
    tally[0], tally[1] = met, verified


@numba.njit(cache=True, nogil=True)
def settle(rows: Any, others: Any, likeness: Any, kept_by: Any, best: Any) -> None:
    """Go through pairs that are alike; a row goes in favour of the kept one that it is most like, of equals the first.

    Args:
        rows: (E,) sorted: no row after it has a say in what becomes of one.
        others: (E,) rows before these.
        likeness: (E,) float64.
        kept_by: (N,) int64, -1: kept; written.
        best: (N,) float64, -1; written.
    """
    for i in range(len(rows)):
        row, other = rows[i], others[i]
        if kept_by[other] >= 0:
            continue
        if likeness[i] > best[row] or (likeness[i] == best[row] and other < kept_by[row]):
            kept_by[row], best[row] = other, likeness[i]
