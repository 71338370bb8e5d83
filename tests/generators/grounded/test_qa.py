"""Questions made from documents: what a planned model writes is kept or refused for the reason worked out by hand, and leads back to bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import flywheel
from engine.errors import StageFailed, UserError
from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.grounded.citations import citations
from generators.grounded.qa_stage import GroundedQa
from generators.grounded.refusal import WORDINGS
from generators.grounded.support import first_unsupported
from tests.generators.planned import Planned

CITIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Kenya": "Nairobi", "Ghana": "Accra"}
DOCUMENTS = [
    {"id": f"{i:032x}", "parents": [], "source": "w.txt", "offset": 10 * i,
     "text": f"Über {country}: {country} is a country with rivers. The capital of {country} is {city}, a city with bridges."}
    for i, (country, city) in enumerate(CITIES.items())
]  # fmt: skip


def country_in(text: str) -> str:
    return next(one for one in CITIES if f"capital of {one}" in text)


def writes(asked: str, seed: int) -> str:
    """A model that does as it is told, and about Ghana says what is not there."""
    if asked.startswith("Here are two passages"):
        first, second = (country_in(half) for half in asked.split("[2] "))
        said = {"question": f"What are the capitals of {first} and {second}?"}
        for name, one in (("first", first), ("second", second)):
            said |= {
                name: f"The capital of {one} is {CITIES[one]}.",
                f"{name}_quote": f"The capital of {one} is {CITIES[one]}",
            }
        return json.dumps(said)
    if asked.startswith("Here are passages"):
        return json.dumps({"question": f"How many people live in {CITIES[country_in(asked)]}?"})
    if "Is the answer to this question said" in asked:
        return json.dumps({"answer": "no"})
    if "Does the statement follow" in asked:
        return json.dumps({"answer": "no" if "Kenya" in asked else "yes"})
    if not asked.startswith("Here is a passage"):  # the question alone: it guesses
        return "It is Ulm."
    one = country_in(asked)
    said = {
        "question": f"What is the capital of {one}?",
        "answer": f"The capital of {one} is {CITIES[one]}.",
        "quote": f"capital of {one} is {CITIES[one]}",
    }
    if "And a conversation" in asked:
        said = {
            "question": "And what has the city?",
            "answer": f"{CITIES[one]} is a city with bridges.",
            "quote": "a city with bridges",
        }
    if one == "Ghana":
        said["answer"] = "The capital of Ghana is Kumasi."
    return json.dumps(said)


@pytest.fixture
def made(given: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("generators.grounded.qa.open_backend", lambda *a, **k: (Planned(writes), "m"))

    def make(**settings: Any) -> Artifact:
        documents = given("Document", DOCUMENTS)
        return build(
            GroundedQa,
            {"documents": documents, "model": given("Document", DOCUMENTS[:1])},
            words=40,
            overlap=0,
            **settings,
        )

    return make


def test_answers_cite_what_bears_them_out_and_lead_back_to_bytes(made: Any) -> None:
    done = made(count=6, forms={"one_hop": 1.0}, distractors=2, tries=1)
    rows = done.to_table().to_pylist()
    assert {row["reference"] for row in rows} == {
        f"The capital of {one} is {city}." for one, city in CITIES.items() if one != "Ghana"
    }
    assert done.manifest["rejected"] == {"unsupported": 1} and done.manifest["summary"]["shortfall"].startswith(
        "1 of 6"
    )
    texts = {row["id"]: row["text"].encode() for row in DOCUMENTS}
    for row in rows:
        asked, answer = (message["content"] for message in row["messages"])
        assert not first_unsupported(answer, row["passages"]).reason and len(row["passages"]) == 3
        (cited,) = citations(answer, 3)
        assert [row["retrieved"][cited - 1]] == row["gold"] and f"[{cited}] {row['passages'][cited - 1]}" in asked
        places = json.loads(row["metadata"])["passages"]
        for place, passage in zip(places, row["passages"], strict=True):
            assert texts[place["document"]][place["start"] : place["end"]].decode() == passage
            assert place["offset"] == 10 * int(place["document"], 16) and place["source"] == "w.txt"
        assert [one["gold"] for one in places].index(True) == cited - 1
        assert set(row["parents"]) == {one["document"] for one in places}
    assert (
        len({json.dumps([p["gold"] for p in json.loads(r["metadata"])["passages"]]) for r in rows}) > 1
    )  # not always first


def test_every_form(made: Any) -> None:
    several = made(count=3, forms={"multi_hop": 1.0}, distractors=1).to_table().to_pylist()
    for row in several:
        answer = row["messages"][-1]["content"]
        assert (
            len(row["gold"]) == 2
            and len(row["passages"]) == 3
            and not first_unsupported(answer, row["passages"]).reason
        )
    (talk, *_) = made(count=2, forms={"conversation": 1.0}, turns=2, distractors=1).to_table().to_pylist()
    said = [message["content"] for message in talk["messages"]]
    assert (
        len(said) == 4 and said[2] == "And what has the city?" and "with bridges [" in said[3] and "[1] Über" in said[0]
    )
    for row in made(count=2, forms={"unanswerable": 1.0}).to_table().to_pylist():
        assert row["messages"][-1]["content"] in WORDINGS and row["gold"] == [] and row["reference"] is None


def test_a_sentence_of_the_passage_is_the_answer_for_a_small_writer(
    given: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(asked: str, seed: int) -> str:
        sentence = asked.split('is the answer: "')[1].split('" The question')[0]
        return f'Question: "What of {" ".join(sentence.split()[:7])}?"' if "Peru" not in asked else "Is it?\nYes."

    monkeypatch.setattr("generators.grounded.qa.open_backend", lambda *a, **k: (Planned(asks), "m"))
    inputs = {"documents": given("Document", DOCUMENTS), "model": given("Document", DOCUMENTS[:1])}
    done = build(
        GroundedQa,
        inputs,
        count=6,
        tries=1,
        answers="extracted",
        forms={"one_hop": 1.0},
        words=40,
        overlap=0,
        distractors=1,
    )
    texts = {row["text"] for row in DOCUMENTS}
    for row in done.to_table().to_pylist():
        assert any(row["reference"] in text for text in texts) and row["question"].startswith("What of ")
        assert not first_unsupported(row["messages"][-1]["content"], row["passages"]).reason
    assert done.rows == 5 and done.manifest["rejected"] == {"off_the_subject": 1}


def test_a_question_of_several_passages_needs_each_of_them(
    given: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(asked: str, seed: int) -> str:
        first = country_in(asked.split("[2] ")[0])
        one = f"The capital of {first} is {CITIES[first]}."
        other = f"{country_in(asked.split('[2] ')[1])} is a country with rivers"
        return json.dumps(
            {
                "question": "What of both of them?",
                "first": one,
                "first_quote": one[:-1],
                "second": "It is a country with rivers.",
                "second_quote": other,
            }
        )

    monkeypatch.setattr("generators.grounded.qa.open_backend", lambda *a, **k: (Planned(lazy), "m"))
    inputs = {"documents": given("Document", DOCUMENTS), "model": given("Document", DOCUMENTS[:1])}
    with pytest.raises(StageFailed, match="one_is_enough \\(2\\)"):
        build(GroundedQa, inputs, count=2, tries=1, forms={"multi_hop": 1.0}, words=40, overlap=0)


def test_what_is_left_out_is_refused_and_what_is_hidden_is_not_cited(made: Any) -> None:
    for row in made(count=4, forms={"one_hop": 1.0}, left_out=1.0, distractors=2).to_table().to_pylist():
        assert row["reference"] is None
        city = CITIES[country_in(row["question"])]
        assert (
            row["messages"][-1]["content"] in WORDINGS
            and city not in row["messages"][0]["content"]
            and len(row["passages"]) == 2
        )
    for row in made(count=4, forms={"one_hop": 1.0}, passages="hidden").to_table().to_pylist():
        assert row["messages"][0]["content"] == row["question"] and row["messages"][1]["content"] == row["reference"]


def test_preferences_and_exams(made: Any) -> None:
    settings: dict[str, Any] = {"count": 4, "distractors": 1}
    pairs = made(give="preferences", forms={"one_hop": 0.5, "unanswerable": 0.5}, **settings)
    assert pairs.kind == "Preference"
    for row in pairs.to_table().to_pylist():
        assert row["rejected"][0]["content"] == "It is Ulm." and row["prompt"][0]["content"].endswith(row["question"])
        chosen = row["chosen"][0]["content"]
        assert chosen in WORDINGS if not row["gold"] else not first_unsupported(chosen, row["passages"]).reason
    exam = made(give="prompts", forms={"one_hop": 1.0}, **settings)
    assert exam.kind == "Prompt" and all(len(row["prompt"]) == 1 for row in exam.to_table().to_pylist())
    assert all(row["prompt"][0]["content"] == row["question"] for row in exam.to_table().to_pylist())


def test_a_judge_has_a_say(made: Any) -> None:
    done = made(count=6, forms={"one_hop": 1.0}, judged=True, tries=1)
    assert done.manifest["rejected"] == {"not_entailed": 1, "unsupported": 1}


def test_known_questions_need_no_model(given: Any, build: Any) -> None:
    known = [
        {"id": f"{i + 50:032x}", "parents": [], "reference": city, "messages": [
            {"role": "user", "content": f"Which city is {country}'s capital?"},
            {"role": "assistant", "content": f"The capital of {country} is {city if country != 'Peru' else 'Cusco'}."}]}
        for i, (country, city) in enumerate(CITIES.items())
    ]  # fmt: skip
    inputs = {"documents": given("Document", DOCUMENTS), "questions": given("Conversation", known)}
    done = build(GroundedQa, inputs, distractors=1, words=40, overlap=0, template={"reply": "Hear: {{ answer }}"})
    rows = done.to_table().to_pylist()
    assert len(rows) == 5 and done.manifest["rejected"] == {"no_passage": 1}
    assert all(
        row["messages"][-1]["content"].startswith("Hear: The capital") and row["parents"][0] in {k["id"] for k in known}
        for row in rows
    )
    assert build(GroundedQa, inputs, distractors=1, words=40, overlap=0, partition=1, count=3).rows == 3


def test_rows_lead_back_to_the_bytes_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    (tmp_path / "a.md").write_text("# Öl\n\nThe tank holds 40 litres.\n", encoding="utf-8")
    (tmp_path / "faq.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "How much does the tank hold?"}, {"role": "assistant", "content": "The tank holds 40 litres."}]}\n'
    )
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n  pages: {kind: read, paths: [a.md]}\n"
        "  qa: {kind: grounded_qa, from: {documents: pages, questions: ./faq.jsonl}, words: 5, overlap: 1, distractors: 0}\n"
    )
    (row,) = flywheel.run(tmp_path / "r.yaml")["qa"].to_table().to_pylist()
    (place,) = json.loads(row["metadata"])["passages"]
    data = (tmp_path / place["source"]).read_bytes()
    assert data[place["offset"] + place["start"] : place["offset"] + place["end"]].decode() == row["passages"][0]
    assert "40 litres" in row["passages"][0]


def test_mistakes(given: Any, build: Any) -> None:
    for wrong, says in (
        ({"words": 5, "overlap": 5}, "should be less than"),
        ({"forms": {"one_hop": 0.5}}, "add up to 1"),
        ({"answers": "extracted"}, "is for the forms one_hop"),
        ({"passages": "hidden", "give": "prompts"}, "leaves nothing to leave out"),
        ({"template": {"follow": "{{ x }}"}}, "follow_up"),
    ):
        with pytest.raises(ValidationError, match=says):
            GroundedQa.model_validate(wrong)
    documents = given("Document", DOCUMENTS)
    with pytest.raises(UserError, match="how many"):
        build(GroundedQa, {"documents": documents})
    with pytest.raises(UserError, match="who answers"):
        build(GroundedQa, {"documents": documents}, count=3)
    known = given("Conversation", [{"id": "f" * 32, "parents": [], "messages": [{"role": "user", "content": "Why?"}]}])
    with pytest.raises(UserError, match="none of the `questions` has an answer"):
        build(GroundedQa, {"documents": documents, "questions": known})


def test_a_killed_run_ends_with_the_same_bytes(
    given: Any, build: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(Exception): ...

    settings: dict[str, Any] = {"count": 5, "partition": 2, "words": 40, "overlap": 0, "distractors": 1, "seed": 3}
    documents, made = given("Document", DOCUMENTS), []
    inputs = {"documents": {"d": documents}, "model": {"m": given("Document", DOCUMENTS[:1])}}
    for ends in ((10_000,), (2, 5, 9, 10_000)):  # calls of the model after which it dies
        place = Store(str(tmp_path / str(len(ends))))
        for end in ends:
            count = 0

            def fragile(asked: str, seed: int, end: int = end) -> Any:
                nonlocal count
                count += 1
                return Killed() if count == end else writes(asked, seed)

            backend = Planned(fragile)
            monkeypatch.setattr("generators.grounded.qa.open_backend", lambda *a, b=backend, **k: (b, "m"))
            try:
                made.append(carry_out(place, "qa", GroundedQa.model_validate(settings), inputs))
            except Killed:
                continue
    whole, again = made
    assert again.digest == whole.digest and again.rows == 5 and len(again.parts()) > 2
