"""The `label` stage with Label Studio in the place of Argilla: the same rows, and people who are waited for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import flywheel
from engine.errors import UserError, Waiting
from engine.plan.starters import start
from engine.store.store import Store
from engine.view.unfinished import read_unfinished
from labeling.label.lead_view import people
from labeling.label_studio.studio_client import LabelStudio
from labeling.tool.task import RankingTask, Submission

TEXTS = ["the best", "good", "poor"]


def test_scripted_annotators_give_the_rows_that_they_give_in_argilla(
    client: Any, label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    (recipe, *_), _ = start("mine", "rank", tmp_path)
    plain = "from: {candidates: ./rank/answers.jsonl}"
    judged = (
        "from: {candidates: ./rank/answers.jsonl, verdicts: gold}\n    scripted: [{name: ada}, {name: Ben, noise: 2}]"
    )
    gold = "  gold:\n    kind: judge\n    from: ./rank/answers.jsonl\n    rules: {utility: LENGTH(completion)}\n"
    recipe.write_text(recipe.read_text().replace(plain, judged) + gold)
    sets = [
        "rankings.flags=[unsafe, wrong]",
        "rankings.orders=annotator",
        f"rankings.dataset=rank-{uuid4().hex[:8]}",
        "rankings.per_record=2",
        "rankings.top=1",
        "rankings.aspects=[accuracy]",
    ]
    made = {
        tool: flywheel.run(recipe, store=str(tmp_path / tool), overrides=[*sets, f"rankings.tool={tool}"])
        for tool in ("argilla", "label_studio")
    }
    ours, theirs = (made[tool]["rankings"] for tool in ("label_studio", "argilla"))
    assert ours.rows == theirs.rows == 6
    assert ours.to_table().equals(theirs.to_table()) and ours.to_table().schema == theirs.to_table().schema
    assert ours.id == theirs.id  # where people worked is no part of the key
    assert made["label_studio"]["preferences"].to_table().equals(made["argilla"]["preferences"].to_table())
    named = {row["annotator"] for row in ours.to_table().to_pylist()}
    assert named == {"scripted-ada", "scripted-Ben"}


def test_people_are_waited_for_and_led(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": f"{p}-{a}", "prompt": f"Question {p}?", "completion": text}
        for p in range(2)
        for a, text in enumerate(TEXTS)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = "{kind: label, tool: label_studio, from: ./answers.jsonl, dataset: NAME, per_record: 2, answers: 3, people: [gina, hugo]}"
    recipe = tmp_path / "waited.yaml"
    name = f"waited-{uuid4().hex[:8]}"
    recipe.write_text(f"name: waited\nstages:\n  rankings: {stage.replace('NAME', name)}\n")
    store = Store(str(tmp_path / "store"))
    with pytest.raises(
        Waiting, match=r"0 of 2 prompts are ranked. Rank the others at http.*/projects/\d+/data\?labeling=1"
    ):
        flywheel.run(recipe, store=str(tmp_path / "store"))
    found = label_studio.call("GET", "projects", params={"title": name})["results"]
    assert [(one["title"], one["maximum_annotations"], one["show_instruction"]) for one in found] == [(name, 2, True)]
    task = next(iter(json.loads(next(store.workplace().glob("label-*/pushed.json")).read_text())["tasks"]))
    assert task["answers"] == 3
    dataset = label_studio.ensure_dataset(RankingTask(**{**task, "aspects": (), "flags": ()}))
    for who in ("gina", "hugo"):
        person = label_studio.as_user(label_studio.ensure_users([who], "flywheel")[0])
        for view in person.records(dataset):
            person.submit(dataset, [Submission(view.id, [TEXTS.index(text) + 1 for text in view.answers])])
    (folder,) = [file.parent.name for file in store.workplace().glob("label-*/spec.json")]
    unfinished = read_unfinished(store, folder)
    assert unfinished is not None
    (led,) = people(unfinished)
    assert "2 of 2 records are judged" in led.summary and led.tables[0]["rows"][0][:2] == ("gina", 2)
    with monkeypatch.context() as elsewhere:  # the key goes to no other server
        elsewhere.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
        with pytest.raises(UserError, match=f"the records are at {label_studio.url}"):
            people(unfinished)
    done = flywheel.run(recipe, store=str(tmp_path / "store"))["rankings"]
    for row in done.to_table().to_pylist():
        assert [TEXTS.index(text) + 1 for text in row["completions"]] == row["ranks"]
        assert row["annotator_kind"] == "person" and row["annotator"] in ("gina", "hugo")
    assert done.rows == 4
    assert not [
        file
        for file in store.workplace().rglob("*")
        if file.is_file() and label_studio.api_key in file.read_text(errors="ignore")
    ]
