"""What kept documents are called where others are removed in their favour. A task a group of files, which leaves by group of the
removed ones the ids of those of its documents that are kept in their place.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pyarrow as pa

from engine.stage.job import Job
from pipelines.dedup.groups import Group
from pipelines.dedup.shuffle import Columns, Shuffle, Table, ends_of, joined
from pipelines.texts.columns import Array, strings, texts_of
from pipelines.texts.documents import Documents

NAMES = "names"
LARGEST = 10  # clusters that the summary tells


class Naming:
    """
    Args:
        begins: (groups + 1,) the number of the first document of each group.
        copies, near: the files of the tasks that found exact copies, and near-duplicates, if there are any.
    """

    def __init__(self, job: Job, folder: str, begins: Array, copies: list[str], near: list[str]) -> None:
        self._job, self._shuffle = job, Shuffle(job, folder)
        self._begins, self._copies, self._near = begins, copies, near

    def __call__(self, group: Group) -> dict[str, Any]:
        """Returns how many clusters the group's documents stand for, and the sizes of the largest."""
        name = f"{NAMES}/{group.name}"
        if (known := self._shuffle.facts(name)) is not None:
            return known
        kept, document = self._asked(group.index)
        begin = int(self._begins[group.index])
        of, sizes = np.unique(kept, return_counts=True)
        ids = Documents(self._job.all(group.port), group.files).ids_of(of - begin)
        asking = np.searchsorted(self._begins, document, side="right") - 1
        pairs = np.unique(asking * np.int64(len(of)) + np.searchsorted(of, kept))
        asking, which = np.divmod(pairs, max(len(of), 1))
        texts = texts_of(ids.take(pa.Array.from_buffers(pa.int64(), len(which), [None, pa.py_buffer(which)])))
        cuts = np.searchsorted(asking, np.arange(len(self._begins)))
        length = np.diff(texts.offsets)
        columns = {"kept": of[which], "length": length, "id": texts.data[texts.offsets[0] : texts.offsets[-1]]}
        facts = {"clusters": len(of), "largest": heapq.nlargest(LARGEST, (sizes + 1).tolist())}
        return self._shuffle.put(name, facts, names=Table(columns, cuts, {"id": ends_of(length)[cuts]}))

    def _asked(self, index: int) -> tuple[Array, Array]:
        """(a document of the group, one that was removed in its favour)."""
        parts: list[Columns] = [{"kept": np.zeros(0, np.int64), "document": np.zeros(0, np.int64)}]
        gone = np.zeros(0, np.int64)
        if self._near:
            parts.append(self._shuffle.gather(self._near, "asked", index))
            gone = np.sort(self._shuffle.gather(self._near, "removed", index)["document"])
        if self._copies:
            pairs = self._shuffle.gather(self._copies, "originals", index)
            here = ~np.isin(pairs["original"], gone, kind="sort") if len(gone) else slice(None)
            parts.append({"kept": pairs["original"][here], "document": pairs["document"][here]})
        every = joined({key: part[key] for key in ("kept", "document")} for part in parts)
        return every["kept"], every["document"]


def names_for(shuffle: Shuffle, groups: int, index: int) -> tuple[Array, pa.Array]:
    """What a group of files is told: kept documents, sorted, and their ids."""
    told = shuffle.gather((f"{NAMES}/{group:06d}" for group in range(groups)), "names", index)
    if not len(told["kept"]):
        return told["kept"], strings([])
    offsets = ends_of(told["length"])
    large = pa.LargeStringArray.from_buffers(len(told["kept"]), pa.py_buffer(offsets), pa.py_buffer(told["id"]))
    return told["kept"], large.cast(pa.string())
