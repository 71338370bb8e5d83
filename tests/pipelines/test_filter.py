from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import StageFailed, UserError
from engine.store import Artifact
from pipelines.statistics import measure

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
PROSE = "The people of the town have to be with the river and that is what they said of it all winter. " * 4


def documents(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "parents": [], "text": text} for i, text in enumerate(texts)]


def test_statistics_counted_by_hand() -> None:
    text = "- The cat… is #1\n\n  * and that dog...\nÜber  42 ·\n"
    (row,) = measure([text]).to_pylist()
    # words: - The cat… is #1 * and that dog... Über 42 · (12); with a letter: The cat… is and that dog... Über (7)
    assert row["words"] == 12
    assert row["characters"] == len(text)
    assert row["lines"] == 3
    assert row["mean_word_length"] == (1 + 3 + 4 + 2 + 2 + 1 + 3 + 4 + 6 + 4 + 2 + 1) / 12
    assert row["hash_ratio"] == 1 / 12
    assert row["ellipsis_ratio"] == 2 / 12
    assert row["bullet_lines"] == 2 / 3
    assert row["ellipsis_lines"] == 1 / 3
    assert row["alpha_words"] == 7 / 12
    assert row["stop_words"] == 2  # "and", "that"; "The" is not "the"
    assert set(measure(["", " \n "]).column("mean_word_length").to_pylist()) == {0.0}


def test_gopher_quality_removes_by_the_rule_that_was_broken(build: Build, given: Given) -> None:
    broken = {
        "gopher_words": "too short to be of use and that is it",
        "gopher_mean_word_length": "of the a b c d e f g h i j " * 10,
        "gopher_hash_ratio": PROSE + "# " * 20,
        "gopher_ellipsis_ratio": PROSE.replace("river", "river...").replace("town", "town…").replace("be", "be..."),
        "gopher_bullet_lines": PROSE.replace("The", "\n- the").strip(),
        "gopher_ellipsis_lines": PROSE.replace(". ", "...\n"),
        "gopher_alpha_words": PROSE + "12345 " * 40,
        "gopher_stop_words": "der schnelle braune Fuchs springt über den faulen Hund " * 8,
    }
    texts = [PROSE, *broken.values()]
    clean = build("filter", {"documents": given("Document", documents(texts))}, rules=["gopher_quality"])
    assert clean.to_table().column("text").to_pylist() == [PROSE]
    rejected = clean.rejected()
    assert rejected is not None
    assert rejected.column("reason").to_pylist() == list(broken)
    assert rejected.column("text").to_pylist() == texts[1:]
    assert rejected.column("detail").to_pylist()[0] == "10"
    assert not any(rejected.column("failed").to_pylist())
    assert clean.manifest["rejected"] == dict.fromkeys(sorted(broken), 1)


def test_bounds_and_rules_of_ones_own(build: Build, given: Given) -> None:
    rows = given("Document", documents(["one two three", "one", "ONE two", "one two three four five"]))
    clean = build(
        "filter", {"documents": rows}, min_words=2, max_words=4,
        keep={"lower": "text = LOWER(text)", "has_three": "STRPOS(text, 'three') > 0 AND words < 9"},
    )  # fmt: skip
    assert clean.to_table().column("id").to_pylist() == ["d0"]
    rejected = clean.rejected()
    assert rejected is not None
    assert dict(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True)) == {
        "d1": "min_words", "d2": "lower", "d3": "max_words",
    }  # fmt: skip
    easy = build("filter", {"documents": rows}, rules=["gopher_quality"], bounds={
        name: [None, None] for name in ("gopher_words", "gopher_mean_word_length", "gopher_stop_words")
    })  # fmt: skip
    assert easy.rows == 4


def test_messages(build: Build, given: Given) -> None:
    rows = given("Document", documents(["one"]))
    with pytest.raises(UserError, match="Did you mean `gopher_words`"):
        build("filter", {"documents": rows}, rules=["gopher_quality"], bounds={"gopher_wrods": [1, 2]})
    with pytest.raises(UserError, match=r"keep\.long.*expected true or false"):
        build("filter", {"documents": rows}, keep={"long": "LENGTH(text)"})
    with pytest.raises(UserError, match="Did you mean `text`"):
        build("filter", {"documents": rows}, keep={"long": "LENGTH(txet) > 3"})
    with pytest.raises(StageFailed, match=r"no row came out: min_words \(1\)"):
        build("filter", {"documents": rows}, min_words=5)
