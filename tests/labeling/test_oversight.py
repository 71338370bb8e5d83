from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import krippendorff
import pytest

from engine.store.writer import ArtifactWriter
from engine.view.report.page import write_report
from labeling.argilla.questions import search_url
from labeling.tool import oversight
from labeling.tool.oversight import RecordJudgement

START = datetime(2026, 1, 1, tzinfo=UTC)


def judged(record: int, annotator: str, ranks: list[int | None], second: float) -> RecordJudgement:
    return RecordJudgement(
        f"r{record}", annotator, ranks, START + timedelta(seconds=second), f"Question {record}?", "http://a/d"
    )


def test_pauses_are_not_work() -> None:
    at = [START + timedelta(seconds=s) for s in (0, 10, 30, 31, 4000, 4020)]
    assert oversight.seconds_per_record(at) == 15  # of 10, 20, 1 and 20; an hour's pause is none
    assert oversight.seconds_per_record(at[:1]) is None


def test_stands_on_pairs() -> None:
    assert oversight.sides([1, 2, 2]) == [1, 1, 0]
    assert oversight.sides([None, 1, None]) == [-1, None, 1]


def test_agreement_falls_where_it_falls() -> None:
    """Ten records on which two annotators agree, then ten on which they contradict each other."""
    rows = [judged(i, "ann", [1, 2], 100 * i) for i in range(20)]
    rows += [judged(i, "bob", [1, 2] if i < 10 else [2, 1], 100 * i + 5) for i in range(20)]
    assert oversight.agreement_over_time(rows, windows=4) == [(5, 1.0), (10, 1.0), (15, 0.0), (20, 0.0)]


def test_alpha_is_krippendorffs_over_records_of_any_number_of_answers() -> None:
    """Against the library, on ranks with ties, answers left out, and records that one annotator alone judged."""
    rows = [
        *(judged(0, "ann", [1, 2, 3], 0), judged(0, "bob", [1, 3, 2], 0), judged(0, "cat", [2, 1, 3], 0)),
        *(judged(1, "ann", [1, 2], 0), judged(1, "bob", [1, 1], 0)),
        *(judged(2, "ann", [1, None, None], 0), judged(2, "cat", [1, 2, 3], 0)),
        judged(3, "bob", [2, 1], 0),
    ]
    nan = float("nan")
    by_annotator = [  # values are ranks with ties at their mean; without a rank an answer shares the last place
        [1, 2, 3, 1, 2, 1, 2.5, 2.5, nan, nan],
        [1, 3, 2, 1.5, 1.5, nan, nan, nan, 2, 1],
        [2, 1, 3, nan, nan, 1, 2, 3, nan, nan],
    ]
    expected = krippendorff.alpha(by_annotator, level_of_measurement="ordinal")
    found = oversight.alpha(rows)
    assert found.value == pytest.approx(expected, abs=1e-12) and found.prompts == 3
    assert oversight.alpha(rows[-1:]).prompts == 0  # nobody to agree with


def test_tables() -> None:
    rows = [
        *(judged(0, "ann", [1, 2], 0), judged(0, "bob", [1, 2], 60), judged(0, "cat", [2, 1], 0)),
        *(judged(1, "ann", [1, 1], 20), judged(1, "bob", [2, 1], 90)),
        *(judged(2, "ann", [1, 2], 50), judged(2, "bob", [1, 2], 100)),
    ]
    annotators, between, disputed = oversight.tables(rows, {"ann": {"draft": 2, "discarded": 1}, "dan": {}})
    assert annotators.rows == [
        ("ann", 3, 2, 1, "25 s", "50%"),  # agrees on 2 of 4
        ("bob", 3, 0, 0, "20 s", "50%"),
        ("cat", 1, 0, 0, "–", "0%"),
        ("dan", 0, 0, 0, "–", "–"),
    ]
    assert between.rows == [("ann, bob", 2, 0, 1, 0), ("ann, cat", 0, 1, 0, 0), ("bob, cat", 0, 1, 0, 0)]
    # one of three stands against two; in the second record nobody is against anybody
    assert [row[:2] for row in disputed.rows] == [("Question 0?", "33%")]


def test_a_link_survives_what_the_ui_does_to_it() -> None:
    url = search_url("http://a/d", 'Is 100% of <b>"this"</b> & that lost?\nYes or no')
    query = parse_qs(urlsplit(url).query)
    assert query["status"] == ["submitted"]
    assert unquote(query["search"][0]) == '"Is 100% of &lt;b&gt; this &lt;/b&gt; &amp; that lost? Yes or no"'


def test_the_report_shows_the_tables_and_escapes_what_models_wrote(store: Any, given: Any, tmp_path: Path) -> None:
    artifact = given("Prompt", [{"id": "p", "parents": [], "prompt": [{"role": "user", "content": "?"}]}])
    rows = [
        RecordJudgement("r", name, ranks, START, "<script>alert(1)</script>", "http://a/d")
        for name, ranks in (("ann", [1, 2]), ("bob", [2, 1]))
    ]
    told = json.dumps([table.as_json() for table in oversight.tables(rows)]).encode()
    ArtifactWriter(store, artifact.id).put_log("tables.json", told)
    stages = {"rankings": {"artifact": artifact.id, "kind": "label", "inputs": {}}}
    store.put(json.dumps({"stages": stages}).encode(), "runs", "r.json")
    page = write_report(store, "r", tmp_path / "report.html").read_text()
    assert "Disputed records <small>rankings</small>" in page and "<td>ann, bob</td>" in page
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;</a>" in page
    assert 'href="http://a/d"' in page
