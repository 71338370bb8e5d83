"""The handbook of the recipe `rag_or_finetune` holds what its facts say, each year; and the recipes from documents run on tiny parts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel
from engine.plan.starters import HOME
from engine.user_code import load
from tests.generators.faulty_server import FaultyServer
from tests.recipes.test_starters import command
from tests.training import tiny_chat

FOLDER = HOME / "rag_or_finetune"
FACTS: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / "facts.jsonl").read_text("utf-8").splitlines()]


def page(name: str, year: str) -> str:
    return next(file for file in (FOLDER / "pages" / name, FOLDER / year / name) if file.exists()).read_text("utf-8")


def test_every_fact_stands_on_its_page_in_its_year() -> None:
    says: Callable[[str, str], bool] = load("rag_or_finetune/checks.py:says", str(HOME))
    assert len(FACTS) == 147 and len({one["question"] for one in FACTS}) == 147
    assert len(list(FOLDER.glob("pages/*.md"))) == 28 and len(list(FOLDER.glob("2026/*.md"))) == 12
    assert [file.name for file in sorted(FOLDER.glob("2026/*"))] == [
        file.name for file in sorted(FOLDER.glob("2027/*"))
    ]
    for fact in FACTS:
        before, after = (" ".join(page(f"{fact['document']}.md", year).split()) for year in ("2026", "2027"))
        assert says(before, fact["answer"]), fact
        assert says(after, fact["changed"] or fact["answer"]), fact
        assert says(fact["statement"], fact["answer"])
        asked = [fact["question"], *fact["others"]]
        assert len(set(asked)) == 3 and not any(says(question, fact["answer"]) for question in asked), fact
        if fact["changed"]:
            assert fact["changed"] != fact["answer"] and says(fact["statement_changed"], fact["changed"])
    assert sum(bool(fact["changed"]) for fact in FACTS) == 32
    assert sum(bool(fact["changed"]) for fact in FACTS[:48]) == 10  # any first part of the file has its share


def test_between_the_years_only_the_changed_facts_change() -> None:
    for file in FOLDER.glob("2026/*.md"):
        old, new = (re.findall(r"\w+", (FOLDER / year / file.name).read_text("utf-8")) for year in ("2026", "2027"))
        changed = [fact for fact in FACTS if fact["document"] == file.stem and fact["changed"]]
        told = {
            word for fact in changed for text in (fact["answer"], fact["changed"]) for word in re.findall(r"\w+", text)
        }
        assert {*old} ^ {*new} <= told | {"2026", "2027", "She", "He"}, file


@pytest.mark.parametrize(
    ("answer", "known", "right"),
    [
        ("Colleague: Up to 9 are. Keep the light.", "9", True),
        ("It is nine.", "9", True),
        ("It begins at 9:45.", "9", False),
        ("There are 2,940.", "9", False),
        ("It costs 2,940 krone [9].", "9", False),
        ("It costs **2,940** krone.", "2,940", True),
        ("From Corrie's farm.", "Corrie", True),
        ("At 9:45 [1].", "9:45", True),
        ("At 19:45.", "9:45", False),
        ("", "9", False),
    ],
)
def test_a_right_answer_says_the_known_one_as_a_word_of_its_own(answer: str, known: str, right: bool) -> None:
    assert load("rag_or_finetune/checks.py:says", str(HOME))(answer, known) is right


def test_style() -> None:
    style = load("rag_or_finetune/checks.py:style", str(HOME))
    said = [" Colleague: It is 9. Keep the light.\n", "It is 9. Keep the light.", "Colleague: It is 9."]
    assert style([""] * 3, said, [""] * 3) == [1, 0, 0]


def copied(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe as `flywheel new` copies it, on a tiny model."""
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    assert command(tmp_path, "new", name).returncode == 0
    recipe = tmp_path / f"{name}.yaml"
    words = "Colleague: Keep the light. What is How many [1] [1]. krone are"
    folder = tiny_chat.save(tmp_path / "model", vocabulary=5 + len(words.split()))
    tiny_chat.tokenizer(words).save_pretrained(folder)
    recipe.write_text(recipe.read_text().replace("hub:HuggingFaceTB/SmolLM2-135M-Instruct", str(folder)))
    return recipe


@pytest.mark.slow
def test_four_ways_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On twelve facts, of which three change."""
    recipe = copied(tmp_path, "rag_or_finetune", monkeypatch)
    closed = ["as_it_is", "finetuned", "as_it_is_2027", "finetuned_before", "finetuned_anew"]
    opened = ["retrieved", "both", "retrieved_2027", "both_2027"]
    small = ["facts.limit=12", "open_chats.words=8", "open_chats.overlap=2"]
    small += [f"{one}.{field}" for one in closed + opened for field in ("engine=transformers", "max_tokens=3")]
    small += [f"{one}.{field}" for one in opened for field in ("words=8", "overlap=2")]
    small += [
        f"{one}.{field}" for one in ("tuned", "tuned_open", "tuned_2027") for field in ("epochs=1", "lora={r: 2}")
    ]
    done = flywheel.run(recipe, overrides=small, only=["results_2027", "exam_2026"])
    table = done["results_2027"].manifest["summary"]["table"]
    assert set(table) == {"as_it_is", "finetuned_before", "finetuned_anew", "retrieved", "both"}
    for line in table.values():
        assert (
            line["n"] == 12
            and 0 == line["right_low"] <= line["right"] <= line["right_high"] < 0.3
            and line["style"] == 0
        )
    known = [done[f"exam_{year}"].to_table()["reference"].to_pylist() for year in ("2026", "2027")]
    assert sum(one != other for one, other in zip(*known, strict=True)) == 3 == done["changed"].rows
    assert done["chats"].rows == 24 and done["chats_2027"].rows == 6
    # What retrieval could give at best: the new pages hold the new answers.
    assert done["retrieved_2027"].manifest["summary"]["reference_retrieved"] > 0.2
    assert {row["reference"] for row in done["retrieved_2027"].to_table().to_pylist()} == set(known[1])


def test_questions_of_the_assistant_are_made_ranked_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the rankings, with a server that writes and answers: of its answers the one that cites is liked best."""
    recipe = copied(tmp_path, "assistant", monkeypatch)

    def answer(messages: list[dict[str, str]], seed: int) -> str:
        asked = messages[-1]["content"]
        if "to which this sentence is the answer" in asked:
            return f"What of {' '.join(asked.split('is the answer: ')[1].split()[:6])}?"
        sentence = re.split(r"(?<=[.!?])\s", asked.removeprefix("[1] "))[0]
        return [f"{sentence} [1]", sentence, "As far as I know nobody can tell.", "It is 1,234 metres [2]."][seed % 4]

    with FaultyServer(share=0, answer=answer) as server:
        here = f"{{model: m, url: '{server.url}'}}"
        text = recipe.read_text()
        text = re.sub(
            r"\n    from:\n      documents: pages\n      model: .*",
            "\n    from: {documents: pages}\n    server: " + here,
            text,
        )
        text = re.sub(
            r"\n    from:\n      documents: exam_pages\n      model: .*", "\n    from: {documents: exam_pages}", text
        )
        text = re.sub(
            r"\n    from:\n      model: .*\n      prompts: questions",
            "\n    from: {prompts: questions}\n    server: " + here,
            text,
        )
        recipe.write_text(text)
        small = [
            "documents.limit=12",
            "questions.count=5",
            "questions.forms={one_hop: 1.0}",
            "exam.count=2",
            "exam.forms={one_hop: 1.0}",
        ]
        done = flywheel.run(recipe, overrides=small, only=["liked"])
    liked = {row["subject"]: row["value"] for row in done["liked"].to_table().to_pylist()}
    by_question: dict[str, list[tuple[float, str]]] = {}
    for row in done["answers"].to_table().to_pylist():
        by_question.setdefault(row["prompt_id"], []).append((liked[row["id"]], row["completion"][0]["content"]))
    assert len(by_question) == 5
    for some in by_question.values():
        assert "[2]" not in max(some)[1] or all("[1]" not in text for _, text in some)
