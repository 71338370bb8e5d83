"""Conversations say what their records say, and no record is in two splits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.errors import UserError
from generators.instructions.stage import Instructions
from generators.instructions.work import assign

FACTS = [
    {"id": f"{i * 7919:032x}", "parents": [], "text": f"text {i}",
     "metadata": json.dumps({"country": f"Country{i}", "capital": f"City{i}"})}
    for i in range(101)
]  # fmt: skip
ASK: dict[str, Any] = {
    "questions": ["What is the capital of {{ country }}?", "Capital of {{ country }}?", "{{ country }}: capital?"],
    "answers": ["{{ capital }}.", "It is {{ capital }}."],
    "reference": "{{ capital }}",
}
SPLIT = {"train": 0.5, "feedback": 0.25, "test": 0.25}


def test_splits_are_exact_and_disjoint_whatever_else_differs(given: Any, build: Any) -> None:
    facts = given("Document", FACTS)
    took = {
        "train": build(Instructions, {"records": facts}, split=SPLIT, take="train", per_record=6, seed=1, **ASK),
        "feedback": build(Instructions, {"records": facts}, split=SPLIT, take="feedback", seed=2, **ASK),
        "test": build(Instructions, {"records": facts}, split=SPLIT, take="test", seed=3, questions=["{{ text }}"]),
    }
    parents = {name: {row["parents"][0] for row in a.to_table().to_pylist()} for name, a in took.items()}
    assert {name: len(ids) for name, ids in parents.items()} == {"train": 50, "feedback": 26, "test": 25}
    assert set.union(*parents.values()) == {row["id"] for row in FACTS}
    assert {name: a.rows for name, a in took.items()} == {"train": 300, "feedback": 26, "test": 25}


@for_all(st.lists(st.text(), unique=True, min_size=4, max_size=60), st.integers(1, 98))
def test_assign_is_a_partition_that_ignores_order(ids: list[str], percent: int) -> None:
    split = {"a": percent / 100, "b": 1 - percent / 100}
    assigned = assign(ids, split)
    assert set(assigned) == set(ids)
    assert list(assigned.values()).count("a") == round(percent / 100 * len(ids))
    assert assign(ids[::-1], split) == assigned


def test_conversations_are_distinct_pairs_of_one_record(given: Any, build: Any) -> None:
    made = build(
        Instructions, {"records": given("Document", FACTS)}, per_record=6, system="Answer {{ country }}.", **ASK
    )
    record = {row["id"]: json.loads(row["metadata"]) for row in FACTS}
    seen: dict[str, set[tuple[str, str]]] = {}
    for row in made.to_table().to_pylist():
        country, capital = record[row["parents"][0]]["country"], record[row["parents"][0]]["capital"]
        system, user, assistant = row["messages"]
        assert system == {"role": "system", "content": f"Answer {country}."}
        assert country in user["content"] and user["role"] == "user"
        assert assistant["content"] in (f"{capital}.", f"It is {capital}.") and row["reference"] == capital
        seen.setdefault(row["parents"][0], set()).add((user["content"], assistant["content"]))
    assert {len(pairs) for pairs in seen.values()} == {6}


def test_questions_alone_make_prompts(given: Any, build: Any) -> None:
    made = build(Instructions, {"records": given("Document", FACTS[:3])}, questions=["{{ country }}?"])
    assert [[m["role"] for m in row["messages"]] for row in made.to_table().to_pylist()] == [["user"]] * 3


def test_rows_that_cannot_be_made_are_rejected_with_a_reason(given: Any, build: Any) -> None:
    hole = {"id": "a" * 32, "parents": [], "text": "", "metadata": json.dumps({"country": "Atlantis"})}
    same = ["{{ country }}?", "{{ country }}? "]
    made = build(
        Instructions, {"records": given("Document", [*FACTS[:4], hole])}, questions=same, answers=["{{ capital }}"],
        per_record=2,
    )  # fmt: skip
    assert made.rows == 4
    assert made.manifest["rejected"] == {"duplicate": 4, "unrenderable": 2} and made.manifest["failed"] == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"split": {"a": 0.5, "b": 0.6}}, "add up to 1"),
        ({"split": {"a": 0.5, "b": 0.5}, "take": "c"}, "is not in `split`"),
        ({"per_record": 7}, "more than the 6 pairs"),
        ({"questions": []}, "at least one template"),
    ],
)
def test_mistakes_in_the_recipe(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Instructions(**{**ASK, **config})


def test_a_name_no_record_has(given: Any, build: Any) -> None:
    with pytest.raises(UserError, match=r"`reference\[0\]` uses `captial`"):
        build(Instructions, {"records": given("Document", FACTS)}, **{**ASK, "reference": "{{ captial }}"})
