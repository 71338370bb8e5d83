from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from engine.errors import StageFailed
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import load_recipe
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.decontaminate.overlap import Passages
from pipelines.texts.shingles import jaccard

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]


def test_rows_that_share_a_passage_go_and_name_it(build: Build, given: Given) -> None:
    passage = "the quick brown fox jumps over the lazy dog near the old river bank"  # 14 words
    evaluation = given("Prompt", [
        {"id": "long", "parents": [], "prompt": [{"role": "user", "content": f"Say: {passage} today."}]},
        {"id": "short", "parents": [], "prompt": [{"role": "user", "content": "What is the capital of Peru?"}]},
        {"id": "tiny", "parents": [], "prompt": [{"role": "user", "content": "Why?"}]},
    ])  # fmt: skip
    texts = {
        "copy": f"So he wrote: THE QUICK, brown fox jumps over the lazy dog near the old river {'x ' * 5}",  # 13 of them
        "less": " ".join(passage.split()[:12]) + " and more",
        "asks": "Quiz. What is the capital of Peru? Lima.",
        "why": "Why? Because.",
    }
    rows = [{"id": name, "parents": [], "text": text} for name, text in texts.items()]
    clean = build("decontaminate", {"documents": given("Document", rows), "against": evaluation})
    assert clean.kind == "Document"
    assert clean.to_table(["id"])["id"].to_pylist() == ["less", "why"]
    rejected = clean.rejected()
    assert rejected is not None
    assert dict(zip(rejected["id"].to_pylist(), rejected["touched"].to_pylist(), strict=True)) == {
        "copy": "long", "asks": "short",
    }  # fmt: skip
    assert rejected["detail"].to_pylist()[0] == "long: the quick brown fox jumps over the lazy dog near the old river"

    chats = given("Conversation", [{"id": "c", "parents": [], "messages": [
        {"role": "user", "content": "What is the capital"}, {"role": "assistant", "content": "of Peru? is Lima"}]},
        {"id": "d", "parents": [], "messages": [{"role": "user", "content": "Hello"}]}])  # fmt: skip
    left = build("decontaminate", {"documents": chats, "against": evaluation})
    assert left.kind == "Conversation" and left.to_table(["id"])["id"].to_pylist() == ["d"]


def test_a_few_words_of_a_script_without_spaces_are_no_passage(build: Build, given: Given) -> None:
    """Thirteen letters of Thai are three words: what all questions of a kind begin with."""
    questions = ["เมืองหลวงของประเทศฝรั่งเศสคืออะไร", "ប្រទេសបារាំងមានរាជធានីឈ្មោះអ្វី", "法国的首都是哪一座城市？", "ไป"]
    exam = given("Prompt", [
        {"id": f"q{i}", "parents": [], "prompt": [{"role": "user", "content": q}]} for i, q in enumerate(questions)
    ])  # fmt: skip
    others = ["เมืองหลวงของประเทศเปรูคืออะไร", "ប្រទេសបារាំងមានមនុស្សប៉ុន្មាន", "法国的首都有多少人口？", "ไปไหนมา"]
    texts = [*others, *(f"({q})" for q in questions[:3])]
    rows = given("Document", [{"id": f"{i}", "parents": [], "text": text} for i, text in enumerate(texts)])
    clean = build("decontaminate", {"documents": rows, "against": exam})
    assert clean.to_table()["id"].to_pylist() == ["0", "1", "2", "3"]
    gone = clean.rejected()
    assert gone is not None and gone["touched"].to_pylist() == ["q0", "q1", "q2"]
    assert clean.manifest["summary"]["evaluation_rows_too_short"] == 1


VOCABULARY = [f"w{i}" for i in range(6)]
TEXT = st.lists(st.sampled_from(VOCABULARY), max_size=25).map(" ".join)


@settings(deadline=None, max_examples=200)
@for_all(st.lists(TEXT, max_size=6), st.lists(TEXT, max_size=6), st.integers(1, 9), st.sampled_from([None, 0.3, 0.8]))
def test_touches_are_those_of_plain_sets(rows: list[str], texts: list[str], ngram: int, near: float | None) -> None:
    least = 3

    def passages(text: str, width: int) -> set[tuple[str, ...]]:
        found = text.split()
        return {tuple(found[i : i + width]) for i in range(len(found) - width + 1)}

    against = Passages(((str(i), row) for i, row in enumerate(rows)), ngram, least, near)
    assert against.too_short == sum(len(row.split()) < least for row in rows)
    for text, touches in zip(texts, against.touches(texts), strict=True):
        exact, like = set[int](), set[int]()
        for i, row in enumerate(rows):
            if len(row.split()) < least:
                continue
            width = min(ngram, len(row.split()))
            if passages(row, width) & passages(text, width):
                exact.add(i)
            elif near is not None and jaccard(row, text, 5) >= near:
                like.add(i)
        assert {t.row for t in touches if t.similarity is None} == exact
        assert {t.row for t in touches if t.similarity is not None} == like
        for touch in touches:
            if touch.similarity is None:
                assert f" {touch.passage} " in f" {text} " and f" {touch.passage} " in f" {rows[touch.row]} "
            else:
                assert touch.similarity == jaccard(rows[touch.row], text, 5)


def test_much_of_the_same_takes_no_quadratic_time() -> None:
    question = "What is the capital of the country that is asked about in this very long question?"
    against = Passages(((str(i), question) for i in range(20_000)), near=None)
    started = time.process_time()
    touches = against.touches([question, f"{question} " * 3_000, "nothing at all of it here"])
    assert time.process_time() - started < 3
    assert [len(touch) for touch in touches] == [20_000, 20_000, 0]


def test_a_row_that_is_nearly_the_same_goes_too(build: Build, given: Given) -> None:
    exam = " ".join(f"word{i}" for i in range(60))
    changed = (
        exam.replace("word12", "other").replace("word24", "other").replace("word36", "other").replace("word48", "x")
    )
    rows = given(
        "Document", [{"id": i, "parents": [], "text": t} for i, t in (("near", changed), ("far", "x y z " * 9))]
    )
    against = given("Document", [{"id": "exam", "parents": [], "text": exam}])
    strict = {"documents": rows, "against": against}
    assert build("decontaminate", strict, near=None).rows == 2  # no 13 words in a row
    clean = build("decontaminate", strict, near=0.4)
    gone = clean.rejected()
    assert gone is not None
    (row,) = gone.to_pylist()
    assert (row["id"], row["reason"], row["touched"]) == ("near", "nearly_contaminated", "exam")
    like = jaccard(exam, changed, 5)
    assert row["detail"] == f"exam: {like:.2f} like it" and like == 36 / 76
    summary = clean.manifest["summary"]
    assert (summary["evaluation_rows_touched"], summary["most_touched"]) == (1, {"exam": 1})


def test_contamination_tells_what_touches_and_removes_nothing(build: Build, given: Given) -> None:
    questions = [f"What is the capital city of country number {name}?" for name in ("one", "two", "three")]
    prompts = given("Prompt", [
        {"id": f"q{i}", "parents": [], "prompt": [{"role": "user", "content": q}]} for i, q in enumerate(questions)
    ] + [{"id": "tiny", "parents": [], "prompt": [{"role": "user", "content": "Why?"}]}])  # fmt: skip
    documents = given("Document", [
        {"id": "a", "parents": [], "text": f"Quiz: {questions[0]} Nobody knows."},
        {"id": "b", "parents": [], "text": f"{questions[0]} {questions[2]}"},
        {"id": "c", "parents": [], "text": "Nothing of the kind."},
    ])  # fmt: skip
    pairs = given("Preference", [{
        "id": "p", "parents": [], "prompt": [{"role": "user", "content": "Hello"}],
        "chosen": [{"role": "assistant", "content": "Hi"}], "rejected": [{"role": "assistant", "content": "No"}],
    }])  # fmt: skip
    training = {"text": documents, "pairs": pairs}
    told = build("contamination", {"training": training, "against": prompts})
    values = {(r["subject"], r["model"]): r["value"] for r in told.to_table().to_pylist()}
    assert values == {
        ("q0", "text"): 2, ("q1", "text"): 0, ("q2", "text"): 1, ("tiny", "text"): 0,
        **{(q, "pairs"): 0 for q in ("q0", "q1", "q2", "tiny")},
    }  # fmt: skip
    first = next(r for r in told.to_table().to_pylist() if r["value"] == 2)
    assert first["text"] == "a: what is the capital city of country number one" and first["parents"] == ["q0", "a"]
    summary = told.manifest["summary"]
    assert summary["headline"] == (
        "2 of 4 evaluation rows stand in training data: text touches 2. 1 are too short to tell (fewer than 5 words)."
    )
    assert summary["training"]["text"] == {"rows": 3, "rows_that_touch": 2, "evaluation_rows_touched": 2}
    answered = given("Conversation", [{"id": "talk", "parents": [], "messages": [
        {"role": "user", "content": questions[2]}, {"role": "assistant", "content": "Nobody knows."}]}])  # fmt: skip
    asked = build("contamination", {"training": {"text": documents}, "against": answered})
    known = [
        ("q0", questions[0], "Ｎｏ\u00adＢody\n knows"),
        ("q2", questions[2], "Ada"),
        ("same", questions[2], "Three"),
    ]
    with_answers = given("Prompt", [
        {"id": i, "parents": [], "prompt": [{"role": "user", "content": q}], "reference": answer} for i, q, answer in known
    ])  # fmt: skip
    told = build("contamination", {"training": training, "against": with_answers}).manifest["summary"]
    # "nobody knows" stands in document a; "Ada" nowhere; "Three" is in its own question, which tells nothing
    assert told["evaluation_rows_answered"] == 1
    assert told["headline"].endswith("text touches 3. Their known answer stands beside 1 of them.")
    assert asked.to_table()["value"].to_pylist() == [1]  # the question is there, followed by something else
    clean = build("contamination", {"training": {"pairs": pairs}, "against": prompts}).manifest["summary"]["headline"]
    assert clean.startswith("None of 4 evaluation rows was found in the training data of pairs.")
    with pytest.raises(StageFailed, match="more than `max_touched`"):
        build("contamination", {"training": {"text": documents}, "against": prompts}, max_touched=0.4)


RECIPE = """
name: loop
stages:
  facts:  {kind: read, paths: ["*.txt"]}
  more:   {kind: read, paths: ["*.txt"]}
  shards: {kind: tokenize, from: [facts], vocab_size: 300, block: 16}
  base:   {kind: pretrain, from: shards, size: {depth: 1, width: 8, heads: 1}}
  sft:    {kind: sft, from: {model: base, conversations: ./chats.jsonl}}
  rm:     {kind: reward, from: {model: sft, preferences: ./pairs.jsonl}}
  ppo:    {kind: ppo, from: {policy: sft, reward: rm, prompts: ./asked.jsonl}}
  tests:  {kind: evaluate, from: {models: [base, ppo], prompts: ./exam.jsonl}}
"""


def test_a_recipe_that_evaluates_is_checked_against_all_its_models_saw(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    for name, row in (("chats", {"messages": [{"role": "user", "content": "x"}]}), ("pairs", pair), ("asked", {"prompt": "a"}),
                      ("exam", {"prompt": "e"})):  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    file = tmp_path / "loop.yaml"

    def checks(recipe: str, only: list[str] | None = None) -> list[Planned]:
        file.write_text(recipe)
        plan = make_plan(load_recipe(file), Store(str(tmp_path / "store")), only)
        return [stage for stage in plan if stage.step.kind == "contamination"]

    (check,) = checks(RECIPE)
    assert check.name == "tests_contamination"
    assert [label for label, _ in check.inputs["training"]] == [
        "facts",
        "./chats.jsonl",
        "./pairs.jsonl",
        "./asked.jsonl",
    ]
    assert [source.name for _, source in check.inputs["against"]] == ["./exam.jsonl"]
    assert checks(RECIPE, only=["sft"]) == []
    assert checks(RECIPE.replace("exam.jsonl}", "exam.jsonl}, contamination: false")) == []
    own = "  mine: {kind: contamination, max_touched: 0, from: {training: [facts, more], against: ./exam.jsonl}}\n"
    assert [stage.name for stage in checks(RECIPE + own)] == ["mine"]
