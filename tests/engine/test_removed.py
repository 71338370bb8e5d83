"""What `show` and `report` tell of rows that did not make it, on artifacts of a stage that no room knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.removed import examples, largest_clusters
from engine.view.report.distributions import funnel, histograms
from engine.view.report.page import write_report
from engine.view.show import print_artifact

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]


class Twins(Stage):
    """Keeps the first document of each first letter, and refuses those that begin with a digit."""

    takes = {"documents": port("Document"), "exams": port("Document", optional=True)}

    def run(self, job: Job) -> None:
        table = job.input("documents").to_table()
        kept: dict[str, str] = {}
        rejected: list[dict[str, Any]] = []
        stays: list[bool] = []
        for row in table.to_pylist():
            letter = row["text"][0]
            gone = letter in kept or letter.isdigit()
            stays.append(not gone)
            if gone:
                twin = {
                    "reason": "twin",
                    "detail": "1.0 like it",
                    "kept_id": kept.get(letter),
                    "evidence": f"[{letter}]",
                }
                exam = {"reason": "digit", "touched": "exam"}
                row = {"id": row["id"], "text": row["text"], "touched": None}
                rejected.append({**row, **(dict.fromkeys(twin) | exam if letter.isdigit() else twin)})
            else:
                kept[letter] = row["id"]
        job.commit("00000", table.filter(pa.array(stays)), pa.Table.from_pylist(rejected))
        drawn = {"edges": [0, 1, 2], "kept": [1, 2], "removed": [3, 0], "bounds": [1, None]}
        (job.output / "histograms.json").write_text(json.dumps({"words": drawn}))
        job.summary(headline="Letters <met> twice.")


@pytest.fixture
def made(build: Build, given: Given) -> Artifact:
    texts = ["a one", "b one", "a two", "a three", "b two", "1 digit", "c [bold]one[/bold]"]
    rows = given("Document", [{"id": f"d{i}", "parents": [], "text": t} for i, t in enumerate(texts)])
    exams = given("Document", [{"id": "exam", "parents": [], "text": "an exam"}])
    return build(Twins, {"documents": rows, "exams": exams})


def test_examples_by_reason_with_the_row_each_is_held_against(made: Artifact) -> None:
    found = examples(made, each=2)
    assert {reason: [e.row["id"] for e in shown] for reason, shown in found.items()} == {
        "twin": ["d2", "d3"],
        "digit": ["d5"],
    }
    assert list(found) == ["twin", "digit"]
    assert [(e.against, e.other and e.other["text"]) for e in found["twin"]] == [("kept", "a one")] * 2
    assert [(e.against, e.other and e.other["text"]) for e in found["digit"]] == [("evaluation row", "an exam")]


def test_clusters_are_counted_over_all_rejected_rows(made: Artifact) -> None:
    clusters = largest_clusters(made, count=5, each=1)
    assert [(c.kept["id"], c.size, [r["id"] for r in c.removed]) for c in clusters] == [
        ("d0", 3, ["d2"]),
        ("d1", 2, ["d4"]),
    ]


def test_show_prints_why_and_beside_what(made: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    print_artifact(made, 3, rejected=False)
    told = capsys.readouterr().out
    for line in ("3  twin  42.9%", "(1.0 like it) a two", "in common: [a]", "kept: a one", "1  digit", "evaluation row: an exam",
                 "3  alike, one kept: a one", "c [bold]one[/bold]"):  # fmt: skip
        assert line in told, told
    print_artifact(made, 9, rejected=True)
    assert "digit  1 digit" in capsys.readouterr().out


def test_the_report_draws_funnel_histograms_clusters_and_headline(made: Artifact, store: Store, tmp_path: Any) -> None:
    entry = {"artifact": made.id, "kind": "filter", "identity": {}, "inputs": {}}
    store.put(json.dumps({"stages": {"twins": entry}}).encode(), "runs", "letters.json")
    page = write_report(store, "letters", tmp_path / "page.html").read_text()
    for text in ("The funnel", "Kept and removed: twins", "The largest clusters: twins", "3 alike, one kept: a one",
                 "Letters &lt;met&gt; twice.", "evaluation row: an exam", "words (≥ 1)"):  # fmt: skip
        assert text in page
    assert page.count("<svg") >= 4


def test_the_pictures_hold_the_counts() -> None:
    drawn = histograms(
        {"share": {"edges": [0, 0.5, 1.0], "kept": [0, 2], "removed": [0, 3], "bounds": [None, 0.9]}}
    ).to_dict()
    assert [(v["bin"], v["side"], v["rows"]) for v in drawn["data"]["values"]] == [
        ("0.5", "kept", 2), ("0.5", "removed", 3),
    ]  # fmt: skip
    assert drawn["concat"][0]["title"] == "share (≤ 0.9)" and histograms({}) is None
    rejected = {f"r{i}": 10 - i for i in range(6)}
    values = funnel([("clean", 100, rejected)]).to_dict()["data"]["values"]
    assert sum(v["rows"] for v in values) == 100 + sum(rejected.values())
    assert [v["what"] for v in values] == ["kept", "r0", "r1", "r2", "r3", "other reasons", "other reasons"]
