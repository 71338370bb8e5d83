"""Equal keys. The second phase: a task a range of hashes, which reads its range of what all groups of files left, and leaves

copies      by group of the copy: a document, and the one with the same words that stays in its place
originals   by group of the one that stays: the same pairs
edges       (E, 2): neighbours in a bucket of equal band keys, so that a bucket is connected by them
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.stage.job import Job
from pipelines.dedup.shuffle import Columns, Shuffle, Table, joined
from pipelines.dedup.signatures import SIGNED
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array

BUCKETS = "buckets"

_leaders = kernel("pipelines.kernels.clusters", "leaders")


class Bucketing:
    """
    Args:
        begins: (groups + 1,) the number of the first document of each group.
        fixed: documents before this one stay whatever they are like.
        near: there are bands.
    """

    def __init__(self, job: Job, folder: str, begins: Array, fixed: int, near: bool) -> None:
        self._shuffle = Shuffle(job, folder)
        self._begins, self._fixed, self._near = begins, fixed, near

    def __call__(self, index: int) -> dict[str, Any]:
        name = f"{BUCKETS}/{index:06d}"
        if (known := self._shuffle.facts(name)) is not None:
            return known
        rows = self._rows("keys", index)
        documents = rows["document"]
        leader = leaders(rows["key"], rows["trust"], rows["worth"])
        gone = np.flatnonzero((leader != np.arange(len(leader))) & (documents >= self._fixed))
        pair = {"document": documents[gone], "original": documents[leader[gone]]}
        tables = {
            "copies": Table.sorted_by(pair["document"], self._begins, **pair),
            "originals": Table.sorted_by(pair["original"], self._begins, **pair),
        }
        del rows, documents, leader
        if self._near:
            rows = self._rows("bands", index)
            tables["edges"] = Table.whole(edges=chains(rows["key"], rows["document"]))
        return self._shuffle.put(name, {"exact": len(gone)}, **tables)

    def _rows(self, table: str, index: int) -> Columns:
        """A range of all groups, with the documents' numbers among all."""
        parts: list[Columns] = []
        for group, begin in enumerate(self._begins[:-1].tolist()):
            part = self._shuffle.part(f"{SIGNED}/{group:06d}", table, index)
            parts.append({**part, "document": part["document"] + np.int64(begin)})
        return joined(parts)


def leaders(keys: Array, trust: Array, worth: Array) -> Array:
    """For each row, the row of its key that stays."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    leader = np.empty(len(keys), np.int64)
    _leaders(keys, trust, worth, np.full(size, -1, np.int64), leader)
    return leader


def chains(keys: Array, documents: Array) -> Array:
    """(E, 2): documents with equal keys, each with the next."""
    order = np.argsort(
        keys
    )  # not stable, which takes five times as long: the order within a bucket is nobody's concern
    ordered = keys[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    return np.stack([documents[order[equal]], documents[order[equal + 1]]], 1)
