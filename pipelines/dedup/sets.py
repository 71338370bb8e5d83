"""The sets of shingles of candidates. The fourth phase: a task a group of files, which leaves by batch: the candidates of its files, how
much each is preferred, their signatures and their sets.
"""

from __future__ import annotations

import numpy as np

from engine.stage.job import Job
from pipelines.dedup.components import CONNECTED
from pipelines.dedup.groups import Group
from pipelines.dedup.shuffle import Shuffle, Table, ends_of, stretches
from pipelines.dedup.signatures import SIGNED
from pipelines.texts.columns import Array, texts_of
from pipelines.texts.documents import Documents, Places
from pipelines.texts.kept_texts import KeptTexts
from pipelines.texts.shingles import sorted_sets

SETS = "sets"


class SetMaking:
    """
    Args:
        begins: (groups + 1,) the number of the first document of each group.
        batches: of candidates.
    """

    def __init__(self, job: Job, folder: str, begins: Array, batches: int, ngram: int, kept: KeptTexts) -> None:
        self._job, self._shuffle = job, Shuffle(job, folder)
        self._begins, self._batches, self._ngram, self._kept = begins, batches, ngram, kept

    def __call__(self, task: tuple[Group, Places]) -> int:
        """Returns how many documents the group has."""
        group, places = task
        name, begin, end = f"{SETS}/{group.name}", *self._begins[group.index : group.index + 2].tolist()
        if self._shuffle.facts(name) is not None:
            return end - begin
        candidates = self._shuffle.part(CONNECTED, "candidates", group.index)
        local, batch_of = candidates["document"] - begin, candidates["batch"]
        sets = [np.zeros(0, np.uint64)]
        lengths = [np.zeros(0, np.int64)]
        documents = Documents(self._job.all(group.port), group.files, self._kept, places)
        for start, batch in documents.batches(["text"], wanted=local):
            low, high = np.searchsorted(local, [start, start + len(batch)])
            if high > low:
                values, ends = sorted_sets(texts_of(batch.column("text")), local[low:high] - start, self._ngram)
                sets.append(values)
                lengths.append(np.diff(ends, prepend=0))
        values, length = np.concatenate(sets), np.concatenate(lengths)
        if self._batches > 1:
            order = np.argsort(batch_of, kind="stable")
            ends = ends_of(length)
            values = np.concatenate([values[:0], *stretches(ends[order], ends[order + 1], values)])
            local, batch_of, length = local[order], batch_of[order], length[order]
        known = self._shuffle.part(f"{SIGNED}/{group.name}", "documents")
        cuts = np.searchsorted(batch_of, np.arange(self._batches + 1))
        signatures = self._shuffle.part(f"{SIGNED}/{group.name}", "signatures")["signatures"]
        signed = np.cumsum(known["counts"] >= 2) - 1  # the place of each document's signature, if it has one
        columns = {
            "document": local + begin, "length": length, "trust": known["trust"][local], "worth": known["worth"][local],
            "signature": signatures[signed[local]] if len(local) else signatures[:0], "values": values,
        }  # fmt: skip
        self._shuffle.put(name, {}, sets=Table(columns, cuts, {"values": ends_of(length)[cuts]}))
        return end - begin
