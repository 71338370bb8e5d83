from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from engine.store import Artifact

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
PROSE = "The people of the town have to be with the river and that is what they said of it all winter. " * 4


def documents(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "parents": [], "text": text} for i, text in enumerate(texts)]


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


def test_the_other_sets(build: Build, given: Given) -> None:
    lines = [" ".join(f"w{i}x{k}" for k in range(8)) + "." for i in range(20)]
    good = "\n".join(lines)
    texts = {
        "good": good,
        "again": "\n".join(lines[:12] + lines[:8]),
        "phrase": " ".join(f"see here now then word{i}" for i in range(40)),
        "short": "\n".join(line[:28] + "." for line in lines),
        "open": good.replace(".", ""),
        "code": good + " {",
        "latin": good + " Lorem IPSUM.",
        "brief": "One. Two.",
    }
    rows = given("Document", [{"id": name, "parents": [], "text": text} for name, text in texts.items()])

    def reasons(*rules: str) -> dict[str, str]:
        rejected = build("filter", {"documents": rows}, rules=list(rules)).rejected()
        assert rejected is not None
        return dict(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))

    repetition = reasons("gopher_repetition")
    assert repetition["again"] == "gopher_duplicate_lines"
    assert repetition["phrase"] == "gopher_top_2gram" and "good" not in repetition
    fineweb = reasons("fineweb")
    assert (fineweb["again"], fineweb["short"], fineweb["open"]) == (
        "fineweb_duplicate_line_characters", "fineweb_short_lines", "fineweb_terminal_lines",
    )  # fmt: skip
    assert "good" not in fineweb
    c4 = reasons("c4")
    assert (c4["brief"], c4["code"], c4["latin"]) == ("c4_sentences", "c4_curly_brackets", "c4_lorem_ipsum")
    assert "good" not in c4


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
    with pytest.raises(ValidationError, match="Did you mean `gopher_words`"):
        build("filter", {"documents": rows}, rules=["gopher_quality"], bounds={"gopher_wrods": [1, 2]})
    with pytest.raises(UserError, match=r"keep\.long.*expected true or false"):
        build("filter", {"documents": rows}, keep={"long": "LENGTH(text)"})
    with pytest.raises(UserError, match="Did you mean `text`"):
        build("filter", {"documents": rows}, keep={"long": "LENGTH(txet) > 3"})
    with pytest.raises(StageFailed, match=r"no row came out: min_words \(1\)"):
        build("filter", {"documents": rows}, min_words=5)
