"""Retrieval is BM25 as its formula says; answers keep what they were shown and what they cite."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from engine.errors import UserError
from engine.retrieval.retrieval_index import RetrievalIndex
from engine.text.words import words
from generators.grounded.retrieval import Passage, PassageIndex, build, passages_of
from generators.grounded.stage import Grounded
from generators.judge.stage import Judge
from pipelines.index.stage import Index
from tests.generators.faulty_server import FaultyServer
from tests.generators.planned import Planned

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Kenya": "Nairobi"}
DOCUMENTS = [
    {"id": f"{i:032x}", "parents": [], "source": "w", "offset": i,
     "text": f"{country} is a country with rivers. The capital of {country} is {capital}, a city with bridges."}
    for i, (country, capital) in enumerate(CAPITALS.items())
]  # fmt: skip
QUESTIONS = [
    {"id": f"{i + 100:032x}", "parents": [], "reference": capital,
     "prompt": [{"role": "user", "content": f"What is the capital of {country}?"}]}
    for i, (country, capital) in enumerate(CAPITALS.items())
]  # fmt: skip


def test_scores_are_bm25(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat", "the dog sat", "a cat and a cat and a dog", "", "nothing here"]
    build([Passage(str(i), 0, text) for i, text in enumerate(texts)], tmp_path)
    index = PassageIndex(tmp_path)
    lengths = [len(words(text)) for text in texts]
    mean = sum(lengths) / len(lengths)

    def bm25(query: str, text: str) -> float:
        total = 0.0
        for term in words(query):
            df = sum(term in words(other) for other in texts)
            tf = words(text).count(term)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * len(words(text)) / mean))
        return total

    for query in ("cat", "cat dog", "the mat", "sat"):
        wanted = sorted(((bm25(query, t), -i) for i, t in enumerate(texts) if bm25(query, t) > 0), reverse=True)
        got = index.search(query, 5)
        assert [int(p.document) for p, _ in got] == [-i for _, i in wanted]
        assert [score for _, score in got] == pytest.approx([score for score, _ in wanted], rel=1e-5)
    assert index.search("unicorn", 3) == [] and len(index.search("cat dog", 1)) == 1


def test_passages_cover_the_document() -> None:
    text = " ".join(str(i) for i in range(100))
    found = passages_of("d", text, 30, 10)
    assert [p.text.split()[0] for p in found] == ["0", "20", "40", "60", "80"] and found[-1].text.endswith(" 99")
    assert all(text[p.start :].startswith(p.text) for p in found) and passages_of("d", " ", 30, 10) == []


def test_documents_without_spaces_are_cut_and_found(tmp_path: Path) -> None:
    texts = [
        "巴黎是法国的首都，有许多桥梁。" * 5,
        "利马是秘鲁的首都，位于太平洋沿岸。" * 5,
        "Le théâtre est près de la forêt.",
    ]
    cut = [passage for i, text in enumerate(texts) for passage in passages_of(str(i), text, 30, 6)]
    assert all(len(passage.text) <= 31 for passage in cut if passage.document != "2") and len(cut) > 6
    assert all(texts[int(p.document)][p.start :].startswith(p.text) for p in cut)
    build(cut, tmp_path)
    index = PassageIndex(tmp_path)
    for question, document in (
        ("秘鲁在哪里？", "1"),
        ("法国", "0"),
        ("LE THE\u0301A\u0302TRE", "2"),
        ("ｆｏｒ\u00adêt", "2"),
    ):
        assert index.search(question, 1)[0][0].document == document


def answers(asked: str, seed: int) -> str:
    first = re.findall(r"^\[1\] .* is (\w+), a city", asked, re.M)
    return f"It is {first[0]} [1]. Some say otherwise [7]." if first else "I can't answer that."


def test_questions_are_answered_from_what_was_found(given: Any, build: Any, monkeypatch: Any) -> None:
    backend = Planned(answers)
    monkeypatch.setattr("generators.grounded.work.open_backend", lambda *a, **k: (backend, "m"))
    unknown = {"id": "f" * 32, "parents": [], "prompt": [{"role": "user", "content": "Qwxyz?"}]}
    prompts = given("Prompt", [*QUESTIONS, unknown, QUESTIONS[0]])
    settings: dict[str, Any] = {"k": 2, "words": 20, "overlap": 2, "n": 2}
    made = build(Grounded, {"documents": given("Document", DOCUMENTS), "prompts": prompts}, **settings)
    rows = made.to_table().to_pylist()
    assert made.rows == 2 * 6 and made.manifest["rejected"] == {"duplicate_id": 1}
    document = {row["id"]: row["text"] for row in DOCUMENTS}
    for row in rows[:10]:
        assert row["completion"][0]["content"].startswith(f"It is {row['reference']} [1]")
        assert row["prompt"][0]["content"].startswith("What is the capital") and row["model"] == "m+grounded"
        (cited,) = row["cited"]
        one, start = cited.split(":")
        assert row["reference"] in document[one][int(start) :] and row["retrieved"][0] == cited
        assert row["parents"][0] == row["prompt_id"] and one in row["parents"][1:]
    assert rows[10]["retrieved"] == rows[10]["cited"] == [] and "No passage" in backend.asked[-1]
    summary = made.manifest["summary"]
    assert summary["reference_retrieved"] == 1.0 and summary["cites"] == pytest.approx(10 / 12, abs=1e-6)
    # Of each answer's two statements the first is borne out by what it cites, and the second cites what was not shown.
    assert [row["supported"] for row in rows] == [0.5] * 10 + [None] * 2 and [row["refused"] for row in rows[10:]] == [
        True
    ] * 2
    assert summary["refused"] == pytest.approx(2 / 12, abs=1e-6) and summary["statements_supported"] == 0.5
    assert summary["cites_what_was_not_shown"] == pytest.approx(10 / 12, abs=1e-6)


def test_retrieval_is_judged_beside_fine_tuning(given: Any, build: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("generators.grounded.work.open_backend", lambda *a, **k: (Planned(answers), "m"))
    grounded = build(Grounded, {"documents": given("Document", DOCUMENTS), "prompts": given("Prompt", QUESTIONS)})
    tuned = given("Candidate", [
        {"id": f"{i:032x}", "parents": [], "prompt_id": q["id"], "prompt": q["prompt"], "model": "sft", "sample": 0,
         "completion": [{"role": "assistant", "content": "It is Rome."}], "reference": q["reference"]}
        for i, q in enumerate(QUESTIONS)
    ])  # fmt: skip
    rules = {"right": "STRPOS(completion, reference) > 0"}
    verdicts = build(Judge, {"candidates": [grounded, tuned]}, rules=rules).to_polars()
    rates = dict(verdicts.group_by("model").agg(pl.col("value").mean()).iter_rows())
    assert rates == {"m+grounded": 1.0, "sft": 0.2}


def test_a_judge_sees_the_passages_and_no_guess_is_called_a_right_answer(
    given: Any, build: Any, monkeypatch: Any
) -> None:
    """The prompts are conversations of a model that answered without a book: its answers are no references."""
    monkeypatch.setattr("generators.grounded.work.open_backend", lambda *a, **k: (Planned(answers), "m"))
    guesses = given("Conversation", [
        {"id": q["id"], "parents": [], "messages": [*q["prompt"], {"role": "assistant", "content": "My guess: Ulm."}],
         "metadata": '{"model": "closed", "method": "self_instruct"}'} for q in QUESTIONS
    ])  # fmt: skip
    documents, asked = given("Document", DOCUMENTS), list[str]()
    grounded = build(Grounded, {"documents": documents, "prompts": guesses}, k=2)
    assert {row["reference"] for row in grounded.to_table().to_pylist()} == {None}
    other = build(Grounded, {"documents": documents, "prompts": guesses}, k=1)
    closed = given("Candidate", [
        {"id": f"{i:032x}", "parents": [], "prompt_id": q["id"], "prompt": q["prompt"], "model": "closed", "sample": 0,
         "completion": [{"role": "assistant", "content": "My guess: Ulm."}]} for i, q in enumerate(QUESTIONS)
    ])  # fmt: skip

    def says(messages: list[dict[str, str]], seed: int) -> str:
        asked.append(messages[0]["content"])
        return '{"truth": 5}' if "whole number" in asked[-1] else '{"winner": "A"}'

    with FaultyServer(share=0, answer=says) as server:
        settings: dict[str, Any] = {"server": {"model": "judge", "url": server.url}}
        rated = build(Judge, {"candidates": grounded}, rubric={"truth": "it is true"}, **settings)
        build(Judge, {"candidates": [grounded, closed]}, pairwise=True, **settings)
        build(Judge, {"candidates": [grounded, other]}, pairwise=True, **settings)
    assert rated.rows == 5 and not any("known right answer" in text for text in asked)
    spent = rated.manifest["timings"]["spent"]["judge"]
    assert (spent["tokens_in"], spent["tokens_out"]) == (50, 25)
    scores = rated.manifest["summary"]["scores"]["truth"]
    assert scores["counts"] == {"5": 5} and scores["mean"] == 5 and scores["answers"] == 5
    texts = {row["prompt_id"]: row["passages"] for row in grounded.to_table().to_pylist()}
    assert len(asked) == 5 + 10 + 10
    for text in asked:
        (shown,) = [
            p for q, p in texts.items() if f"user: {QUESTIONS[int(q, 16) - 100]['prompt'][0]['content']}" in text
        ]
        assert f"[1] {shown[0]}\n" in text and text.count(f"[1] {shown[0]}") == (2 if text in asked[15:] else 1)
        assert (f"[2] {shown[1]}\n" in text) == (len(shown) > 1)


def test_the_index_is_kept(given: Any, build: Any, monkeypatch: Any, store: Any) -> None:
    monkeypatch.setattr("generators.grounded.work.open_backend", lambda *a, **k: (Planned(answers), "m"))
    inputs = {"documents": given("Document", DOCUMENTS), "prompts": given("Prompt", QUESTIONS)}
    first = build(Grounded, inputs)
    monkeypatch.setattr("generators.grounded.retrieval.build", None)
    assert build(Grounded, inputs, partition=2).to_polars().equals(first.to_polars())


@pytest.mark.parametrize("embedding", [None, "static"])
def test_passages_may_come_from_an_index(given: Any, build: Any, monkeypatch: Any, embedding: str | None) -> None:
    monkeypatch.setattr("generators.grounded.work.open_backend", lambda *a, **k: (Planned(answers), "m"))
    index = build(Index, {"documents": given("Document", DOCUMENTS)}, embedding=embedding)
    made = build(Grounded, {"index": index, "prompts": given("Prompt", QUESTIONS)}, k=2)
    wanted = RetrievalIndex(index)
    for row in made.to_table().to_pylist():
        hits = wanted.search(row["prompt"][0]["content"], 2)
        assert row["passages"] == [hit.text for hit in hits] and row["reference"] in hits[0].text
        assert (
            row["retrieved"] == [f"{hit.document}:{hit.start}" for hit in hits] and row["cited"] == row["retrieved"][:1]
        )
        assert row["parents"] == [row["prompt_id"], *(hit.document for hit in hits)]
    assert (
        made.manifest["summary"]["passages"] == index.rows == 5 and made.manifest["summary"]["reference_retrieved"] == 1
    )


def test_mistakes(given: Any, build: Any) -> None:
    with pytest.raises(ValidationError, match="should be less than"):
        Grounded.model_validate({"words": 10, "overlap": 10})
    documents, prompts = given("Document", DOCUMENTS), given("Prompt", QUESTIONS)
    with pytest.raises(UserError, match=r"where are the passages to come from\?.*found neither"):
        build(Grounded, {"prompts": prompts})
    with pytest.raises(UserError, match="found both"):
        build(Grounded, {"documents": documents, "index": build(Index, {"documents": documents}), "prompts": prompts})
    empty = [{**DOCUMENTS[0], "text": " "}]
    with pytest.raises(UserError, match="nothing to retrieve from"):
        build(Grounded, {"documents": given("Document", empty), "prompts": given("Prompt", QUESTIONS)})
