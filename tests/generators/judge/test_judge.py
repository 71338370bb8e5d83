"""Rules give one verdict a candidate and metric, equal to what plain Python computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from generators.judge.stage import Judge
from generators.rules.answer_columns import COLUMNS, score

ANSWERS = [
    ("Paris.", "Paris", 3),
    ("paris is it", "Paris", 5),
    ("What is the capital of Italy?", "Rome", 9),
    ("", "Oslo", 1),
]
CANDIDATES = [
    {
        "id": f"{i:032x}",
        "parents": ["p"],
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"Question {i}?"}],
        "completion": [{"role": "assistant", "content": text}],
        "token_ids": list(range(length)),
        "finish_reason": "stop" if i != 2 else "length",
        "model": "sft-1",
        "reference": reference,
    }
    for i, (text, reference, length) in enumerate(ANSWERS)
]
RULES = {
    "accuracy": "STRPOS(LOWER(completion), LOWER(reference)) > 0",
    "answers": "NOT REGEXP_LIKE(completion, '[?]$')",
    "length": "length",
    "about": "REGEXP_LIKE(prompt, '^Question [0-9]')",
    "cut": "finish_reason = 'length'",
    "short": "CASE WHEN length < 5 THEN 1 END",
}


def test_one_verdict_a_candidate_and_metric(given: Any, build: Any) -> None:
    made = build(Judge, {"candidates": given("Candidate", CANDIDATES)}, rules=RULES)
    values = {(row["subject"], row["metric"]): row["value"] for row in made.to_table().to_pylist()}
    expected: dict[tuple[str, str], float] = {}
    for i, (text, reference, length) in enumerate(ANSWERS):
        one = f"{i:032x}"
        expected[one, "accuracy"] = float(reference.lower() in text.lower())
        expected[one, "answers"] = float(not text.endswith("?"))
        expected[one, "length"] = length
        expected[one, "about"] = 1.0
        expected[one, "cut"] = float(i == 2)
        if length < 5:
            expected[one, "short"] = 1.0
    assert values == expected
    rows = made.to_table().to_pylist()
    assert all(row["parents"] == [row["subject"]] and row["model"] == "sft-1" for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_constant_rule_is_spread_over_all_rows() -> None:
    assert score({"one": "1"}, pl.DataFrame({"length": [1, 2, 3]}))["one"].to_list() == [1.0, 1.0, 1.0]
    assert score({"one": "1"}, pl.DataFrame(schema=COLUMNS)).height == 0


def test_the_seed_is_part_of_a_models_judgement_only() -> None:
    assert Judge(rules=RULES, seed=1).identity() == Judge(rules=RULES, seed=2).identity()
    assert Judge(pairwise=True, seed=1).identity() != Judge(pairwise=True, seed=2).identity()


def test_mistakes_are_told_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match=r"names a column that is not there.*Did you mean `length`"):
        Judge(rules={"short": "lenght < 5"})
    with pytest.raises(ValidationError, match="gives String; a rule gives a number"):
        Judge(rules={"text": "completion"})
    with pytest.raises(UserError, match="not an expression"):
        score({"odd": "1 +"}, pl.DataFrame({"length": [1]}))


def test_what_is_for_pairs_needs_pairs() -> None:
    with pytest.raises(ValidationError, match="`graded` is for pairs"):
        Judge.model_validate({"rules": RULES, "graded": True})
    stage = Judge.model_validate({"rules": RULES})
    assert Judge.model_validate(stage.model_dump(mode="json")) == stage  # how a worker gets it


def test_how_values_are_spread_and_what_has_none(given: Any, build: Any) -> None:
    own = [{**row, "token_ids": None} if i < 3 else row for i, row in enumerate(CANDIDATES)]
    made = build(Judge, {"candidates": given("Candidate", own)}, rules={"utility": "length"})
    assert made.manifest["rejected"] == {"no_verdict": 3} and made.rows == 1
    lost = made.rejected().to_pylist()
    assert {row["id"] for row in lost} == {row["id"] for row in own[:3]}
    assert {row["detail"] for row in lost} == {
        "`utility` gives it no value: `length` is null (it counts `token_ids`, which this answer does not have)"
    }
    with pytest.raises(StageFailed, match=r"no row came out: no_verdict \(3\)\."):
        build(Judge, {"candidates": given("Candidate", own[:3])}, rules={"utility": "length"})
    scores = build(Judge, {"candidates": given("Candidate", CANDIDATES)}, rules=RULES).manifest["summary"]["scores"]
    assert scores["length"]["counts"] == {"1": 1, "3": 1, "5": 1, "9": 1}
    assert [scores["length"][name] for name in ("mean", "least", "median", "most")] == [4.5, 1, 4, 9]
    assert scores["cut"]["counts"] == {"0": 3, "1": 1} and scores["short"]["answers"] == 2


def test_an_answer_without_a_value_is_told_once(given: Any, build: Any, tmp_path: Path) -> None:
    """A check without its reference and a function that says None give no verdict; a function that fails has failed."""
    (tmp_path / "mine.py").write_text(
        "def score(completions, **_):\n    return [None if 'whole' in text else 1 / ('fail' not in text) for text in completions]\n"
    )
    texts = {"a whole": None, "fail": None, "fail 4": "4", "5": "4"}
    rows = [
        {"id": f"{i:032x}", "prompt": [{"role": "user", "content": "?"}], "model": "m", "reference": reference,
         "completion": [{"role": "assistant", "content": text}]} for i, (text, reference) in enumerate(texts.items())
    ]  # fmt: skip
    rules = {"mine": {"python": "mine.py:score"}, "right": {"kind": "number"}}
    made = build(Judge, {"candidates": given("Candidate", rows)}, rules=rules, base=str(tmp_path))
    assert sorted((row["subject"], row["metric"], row["value"]) for row in made.to_table().to_pylist()) == [
        (rows[2]["id"], "right", 1.0), (rows[3]["id"], "mine", 1.0), (rows[3]["id"], "right", 0.0)
    ]  # fmt: skip
    lost = [(row["subject"], row["reason"], row["metric"]) for row in made.rejected().to_pylist()]
    assert lost == [(rows[0]["id"], "no_verdict", None), (rows[1]["id"], "rule_failed", "mine"),
                    (rows[2]["id"], "rule_failed", "mine")]  # fmt: skip
    assert made.rejected()["detail"][0].as_py() == "`mine`, `right` gives it no value: `reference` is null"
