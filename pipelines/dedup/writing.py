"""The last phase: a task a group of files, which writes its documents, those that stay and those that don't, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.stage.job import Job, part_name
from pipelines.dedup.groups import Group
from pipelines.dedup.names import names_for
from pipelines.dedup.shuffle import Shuffle, Table, ends_of
from pipelines.dedup.signatures import SIGNED
from pipelines.dedup.stage import Dedup
from pipelines.texts.columns import Array, column, strings, texts_of
from pipelines.texts.documents import Documents, Places
from pipelines.texts.kept_texts import KeptTexts
from pipelines.texts.shingles import shared_runs

INDEXED = "indexed"
PART_ROWS, PART_BYTES = 10_000, 32 << 20
EVIDENCE = 240  # characters of a shared passage that are shown


@dataclass(frozen=True)
class Decision:
    """What was decided of the documents of a group.

    Attributes:
        kept_by: (N,) the document kept in the place of each, -1 for itself.
        likeness: (N,) to that.
        kept, ids: of the documents that others went in favour of, sorted.
        compared: kept documents whose sets are known, sorted; the set of the i-th is `values[begins[i]:ends[i]]`.
    """

    kept_by: Array
    likeness: Array
    kept: Array
    ids: pa.Array
    compared: Array
    begins: Array
    ends: Array
    values: Array


class Writing:
    """
    Args:
        begins: (groups + 1,) the number of the first document of each group.
        copies, near: the files of the tasks that found exact copies, and near-duplicates, if there are any.
    """

    def __init__(
        self, job: Job, stage: Dedup, folder: str, begins: Array, copies: list[str], near: list[str], kept: KeptTexts
    ) -> None:  # fmt: skip
        self._job, self._stage, self._shuffle, self._kept = job, stage, Shuffle(job, folder), kept
        self._begins, self._copies, self._near = begins, copies, near
        self._done = job.committed()

    def __call__(self, task: tuple[Group, Places, int, int]) -> tuple[int, int]:
        """Returns how many documents the group has, and how many stay.

        Args:
            task: with the place of the group's first part in the result, and digits for these places.
        """
        group, places, first, digits = task
        begin, end = self._begins[group.index : group.index + 2].tolist()
        decision = self._decision(group.index, begin, end)
        documents = Documents(self._job.all(group.port), group.files, self._kept, places)
        part, size, held = 0, 0, list[tuple[int, pa.RecordBatch]]()
        for start, batch in documents.batches():
            held.append((start, batch))
            size += batch.nbytes
            after = start + len(batch)
            if size < PART_BYTES and after - held[0][0] < PART_ROWS and after < end - begin:
                continue
            self._commit((first + part, digits), held, decision)
            part, size, held = part + 1, 0, []
        for place in places.values():
            self._kept.give_up(place)
        stays = np.flatnonzero(decision.kept_by < 0)
        if self._stage.save_index:
            self._save_index(group, stays)
        return end - begin, len(stays)

    def _commit(self, place: tuple[int, int], held: list[tuple[int, pa.RecordBatch]], decision: Decision) -> None:
        index, digits = place
        name = part_name(index, [identity for _, batch in held for identity in batch.column("id").to_pylist()], digits)
        if name in self._done:
            return
        # One by one, so that a part isn't in memory twice.
        split = [self._split(*held.pop(0), decision) for _ in range(len(held))]
        rejected = [table for _, table in split if len(table)]
        self._job.commit(
            name,
            pa.concat_tables([table for table, _ in split], promote_options="default"),
            pa.concat_tables(rejected, promote_options="default") if rejected else None,
        )

    def _decision(self, index: int, begin: int, end: int) -> Decision:
        kept_by, likeness = np.full(end - begin, -1, np.int64), np.ones(end - begin)
        if self._copies:
            pairs = self._shuffle.gather(self._copies, "copies", index)
            kept_by[pairs["document"] - begin] = pairs["original"]
        compared, length, values = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64)
        if self._near:
            removed = self._shuffle.gather(self._near, "removed", index)
            kept_by[removed["document"] - begin] = removed["kept"]
            likeness[removed["document"] - begin] = removed["likeness"]
            evidence = self._shuffle.gather(self._near, "evidence", index)
            compared, length, values = (evidence[key] for key in ("kept", "length", "values"))
        kept, ids = names_for(self._shuffle, len(self._begins) - 1, index)
        ends = ends_of(length)
        order = np.argsort(compared)
        return Decision(
            kept_by, likeness, kept, ids, compared[order], ends[:-1][order], ends[1:][order], values
        )  # fmt: skip

    def _split(self, at: int, batch: pa.RecordBatch, decision: Decision) -> tuple[pa.Table, pa.Table]:
        """(kept, rejected) rows of a batch whose first row is document `at` of the group."""
        table = pa.Table.from_batches([batch])
        by = decision.kept_by[at : at + len(batch)]
        gone = by >= 0
        if not gone.any():
            return table, table.slice(0, 0)
        by, like = by[gone], decision.likeness[at : at + len(batch)][gone]
        rejected = table.filter(column(gone))
        kept_id = decision.ids.take(column(np.searchsorted(decision.kept, by)))
        values, which = np.unique(like, return_inverse=True)
        measured = strings([f"{j:.4f} like " for j in values.tolist()]).take(column(which))
        nothing = strings([""]).take(column(np.zeros(len(by), np.int64)))
        detail = pc.call_function("binary_join_element_wise", [measured, kept_id, nothing])
        reason = strings(["duplicate", "near_duplicate"]).take(column((like < 1).astype(np.int64)))
        for name, values in (
            ("kept_id", kept_id),
            ("cosine" if self._stage.method == "semantic" else "jaccard", column(like)),
            ("evidence", self._evidence(rejected, by, like, decision)),
            ("reason", reason),
            ("detail", detail),
        ):
            rejected = rejected.append_column(name, values)
        return table.filter(column(~gone)), rejected

    def _evidence(self, rejected: pa.Table, by: Array, like: Array, decision: Decision) -> pa.Array:
        """Of each removed text, the beginning of the first passage that stands in the kept one as well."""
        text = rejected.column("text").combine_chunks()
        begun = pc.call_function("utf8_slice_codeunits", [text], pc.SliceOptions(0, EVIDENCE))
        near = np.flatnonzero(like < 1)
        if not len(near):
            return begun
        texts = texts_of(text)
        spans = np.zeros((len(near), 2), np.int64)
        if len(decision.compared):
            place = np.searchsorted(decision.compared, by[near])
            sets = decision.values, decision.begins[place], decision.ends[place]
            spans = shared_runs(texts, near, *sets, self._stage.ngram)
        passages = [texts.data[begin:end].tobytes().decode()[:EVIDENCE] for begin, end in spans.tolist()]
        return pc.call_function("replace_with_mask", [begun, column(like < 1), strings(passages)])

    def _save_index(self, group: Group, stays: Array) -> None:
        """What is known of the documents that stay."""
        known = self._shuffle.part(f"{SIGNED}/{group.name}", "documents")
        signatures = self._shuffle.part(f"{SIGNED}/{group.name}", "signatures")["signatures"]
        counts, here = known["counts"], np.zeros(len(known["counts"]), bool)
        here[stays] = True
        table = Table.whole(key=known["key"][stays], counts=counts[stays], signatures=signatures[here[counts >= 2]])
        self._shuffle.put(f"{INDEXED}/{group.name}", {}, rows=table)
