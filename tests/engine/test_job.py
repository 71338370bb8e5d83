"""Partitions commit once, failed jobs keep what they had, and the digest of a result does not depend on interruptions."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import StageFailed
from engine.stage.job import Job, Part
from engine.stage.stage import Stage, port
from engine.store.store import Store
from engine.view.show import print_artifact


class Upper(Stage):
    takes = {"documents": port("Document")}
    gives = "Document"
    stop_after: int = 0

    def run(self, job: Any) -> None:
        for count, part in enumerate(job.parts("documents", rows=3)):
            if self.stop_after and count == self.stop_after:
                raise KeyboardInterrupt
            rows = part.table.to_pylist()
            kept = [{**row, "text": row["text"].upper()} for row in rows if row["text"] != "bad"]
            bad = [{**row, "reason": "bad", "failed": True} for row in rows if row["text"] == "bad"]
            part.commit(pa.Table.from_pylist(kept, part.table.schema), pa.Table.from_pylist(bad) if bad else None)


DOCS = [{"id": f"{i:032x}", "parents": [], "text": f"text {i}" if i != 4 else "bad"} for i in range(10)]


def test_rows_are_kept_counted_and_rejected(given: Any, build: Any) -> None:
    made = build(Upper, {"documents": given("Document", DOCS)})
    assert made.rows == 9
    assert made.manifest["rejected"] == {"bad": 1} and made.manifest["failed"] == 1
    assert made.to_polars()["text"].to_list() == [row["text"].upper() for row in DOCS if row["text"] != "bad"]
    assert made.rejected().column("text").to_pylist() == ["bad"]
    assert made.verify() == []


def test_too_many_failures_fail_the_stage_and_leave_no_artifact(given: Any, build: Any, store: Any) -> None:
    with pytest.raises(StageFailed, match="1 of 10 rows failed, more than the ceiling of 5%"):
        build(Upper, {"documents": given("Document", DOCS)}, max_failed=0.05)
    assert [a.id for a in store.artifacts() if a.id.startswith("upper")] == []


def test_progress_counts_what_is_committed_and_not_what_is_under_way(given: Any, store: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "engine.stage.job.time", SimpleNamespace(monotonic=itertools.count(1).__next__)
    )  # nothing is thinned out
    documents, told = given("Document", DOCS), list[Any]()

    def parts() -> list[Part]:
        told.clear()
        return list(Job(store, "upper-1", "Document", {"documents": {"d": documents}}, 0, emit=told.append).parts(
            "documents", rows=3))  # fmt: skip

    def done() -> list[int]:
        return [event["done"] for event in told if event["event"] == "progress"]

    drawn = parts()
    assert done() == []
    for part in reversed(drawn[1:]):
        part.commit(part.table)
    assert done() == [1, 4, 7]
    (left,) = parts()
    assert done() == [3, 6, 7]
    left.commit(left.table)
    assert done() == [3, 6, 7, 10]


class Learns(Stage):
    """A 'model' of the texts that are not bad."""

    takes = {"documents": port("Document")}
    gives = "Model"

    def run(self, job: Any) -> None:
        rows = [row for row in job.input("documents").to_table().to_pylist() if row["text"] == "bad"]
        job.reject("00000", pa.Table.from_pylist([{**row, "reason": "bad", "failed": True} for row in rows]))
        (job.output / "weights").write_text("1")


def test_what_a_model_was_not_made_from_is_a_share_of_what_came_in(
    given: Any, build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = given("Document", DOCS)
    print_artifact(build(Learns, {"documents": documents}), 0, rejected=False)  # at the usual ceiling of a half
    told = capsys.readouterr().out
    assert "1 row did not make it (10.0% of 10, 1 of them failed)" in told and "bad  10.0%" in told
    with pytest.raises(StageFailed, match="1 of 7 rows failed, more than the ceiling of 5%"):
        build(Learns, {"documents": given("Document", DOCS[3:])}, max_failed=0.05)


class Silent(Stage):
    takes = {"documents": port("Document", optional=True)}

    def run(self, job: Any) -> None: ...


def test_nothing_made_of_something_is_not_nothing_that_came_in(given: Any, build: Any) -> None:
    with pytest.raises(StageFailed, match="no row came out: 10 rows came in, and nothing was made of them"):
        build(Silent, {"documents": given("Document", DOCS)})
    with pytest.raises(StageFailed, match="no row came out: nothing came in"):
        build(Silent, {})


def test_what_was_spent_is_added_up_and_outlives_a_kill(store: Store) -> None:
    events = list[dict[str, Any]]()
    job = Job(store, "asks-1", "Document", {}, 0, emit=events.append)
    job.spend("a", tokens_in=10, tokens_out=2, cost=0.5)
    job.spend("b", tokens_in=5, tokens_out=1, cost=0.0)
    job.spend("a", tokens_in=20, tokens_out=4, cost=1.0)  # in all, not since the last time
    assert events[-1] == {"event": "tokens", "in": 25, "out": 5, "cost": 1.0}
    assert Job(store, "asks-1", "Document", {}, 0).spent == job.spent
    assert Job(store, "asks-2", "Document", {}, 0).spent == {}
