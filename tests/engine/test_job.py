"""Partitions commit once, failed jobs keep what they had, and the digest of a result does not depend on interruptions."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from engine.errors import StageFailed
from engine.stage.stage import Stage, port


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
