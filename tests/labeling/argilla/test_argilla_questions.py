"""What people can be asked besides a full ranking: each kind goes to the real server and comes back."""

from __future__ import annotations

import dataclasses

import pytest

from engine.errors import UserError
from labeling.argilla.client import Argilla
from labeling.argilla.dataset_status import dataset_statuses
from labeling.label.scripted import ScriptedAnnotator, annotate
from labeling.tool.task import RankingRecord, RankingTask, Submission

PROMPT = [{"role": "user", "content": "?"}]


def as_ann(client: Argilla, task: RankingTask) -> Argilla:
    (ann,) = client.ensure_users(["ann"], task.workspace)
    return client.as_user(ann)


def test_pairs_are_asked_with_one_choice(client: Argilla, task: RankingTask) -> None:
    pairs = dataclasses.replace(task, answers=2, asked="pairwise")
    dataset = client.ensure_dataset(pairs)
    client.push(dataset, [RankingRecord(f"g{i}", PROMPT, [f"x{i}", f"y{i}"]) for i in range(4)])
    ann = as_ann(client, pairs)
    said = {"g0": (1, 2), "g1": (2, 1), "g2": (1, 1)}
    for record in ann.pending(dataset):
        if record.external_id in said:
            ann.submit(dataset, [Submission(record.id, said[record.external_id], flags=["wrong"])])
        else:
            ann.submit(dataset, [Submission(record.id, [None, None], "draft", correction="z")])
    pulled = {r.external_id: r for r in client.pull(dataset)}
    assert {key: pulled[key].ranks for key in said} == said
    assert (pulled["g3"].status, pulled["g3"].ranks, pulled["g3"].correction) == ("draft", (None, None), "z")


def test_ratings_by_aspect_come_back_and_rank_the_answers(client: Argilla, task: RankingTask) -> None:
    rated = dataclasses.replace(task, asked="rating", aspects=("accuracy", "safety"))
    dataset = client.ensure_dataset(rated)
    client.push(dataset, [RankingRecord("g", PROMPT, ["x", "y", "z"])])
    ann = as_ann(client, rated)
    (shown,) = ann.pending(dataset)
    with pytest.raises(UserError, match="name='safety-a'"):  # the server asks for every rating
        ann.submit(dataset, [Submission(shown.id, [None] * 3, ratings={"accuracy": [1, 2, None]})])
    ratings = {"accuracy": (2, 5, 4), "safety": (3, 1, 1)}
    ann.submit(dataset, [Submission(shown.id, [None] * 3, ratings=ratings)])
    (response,) = client.pull(dataset)
    assert response.ratings == ratings
    assert response.ranks == (2, 1, 2)  # sums 5, 6, 5


def test_the_best_few_leave_the_rest_unranked(client: Argilla, task: RankingTask) -> None:
    best = dataclasses.replace(task, answers=4, top=2)
    dataset = client.ensure_dataset(best)
    client.push(dataset, [RankingRecord(f"g{i}", PROMPT, ["w", "x", "y", "z"]) for i in range(3)])
    ann = as_ann(client, best)
    submitted = {"g0": [2, None, 1, None], "g1": [3, 1, 3, 2], "g2": [4, 1, 3, 2]}
    for record in ann.pending(dataset):
        ann.submit(dataset, [Submission(record.id, submitted[record.external_id])])
    # The rest at one rank says nothing of them; who told them apart is heard.
    assert {r.external_id: r.ranks for r in client.pull(dataset)} == {
        "g0": (2, None, 1, None),
        "g1": (None, 1, None, 2),
        "g2": (4, 1, 3, 2),
    }


def test_scripted_annotators_answer_every_kind_of_question(client: Argilla, task: RankingTask) -> None:
    worth = {"x": 2.0, "y": 1.0, "z": 0.0}
    kinds = [
        ("pairwise", "yx", None, (2, 1)),
        ("rating", "zxy", None, (3, 1, 2)),
        ("ranking", "yzx", 1, (None, None, 1)),
    ]
    for asked, answers, top, expected in kinds:
        kind = dataclasses.replace(
            task, name=f"{task.name}-{asked}", asked=asked, answers=len(answers), aspects=("accuracy",), top=top
        )  # fmt: skip
        dataset = client.ensure_dataset(kind)
        client.push(dataset, [RankingRecord("g", PROMPT, list(answers))])
        assert annotate(client, dataset, [ScriptedAnnotator("kind", worth)], per_record=1) == 1
        (response,) = client.pull(dataset)
        assert response.ranks == expected
        assert response.ratings == {"accuracy": tuple(5 - "xyz".index(answer) for answer in answers)}


def test_suggestions_fill_the_form_only_where_they_were_asked_for(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    records = [RankingRecord("with", PROMPT, ["x", "y", "z"], suggested=[2, 1, 2]), RankingRecord("without", PROMPT, ["x", "y", "z"])]  # fmt: skip
    client.push(dataset, records)
    items = client.call("GET", f"datasets/{dataset.id}/records", params={"include": "suggestions"})["items"]
    found = {item["external_id"]: [s["value"] for s in item["suggestions"]] for item in items}
    assert found["without"] == []
    assert {o["value"]: o["rank"] for o in found["with"][0]} == {"a": 2, "b": 1, "c": 2}
    assert list(client.pull(dataset)) == []  # a suggestion is no answer


def test_a_dataset_that_somebody_deleted(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    client.call("DELETE", f"datasets/{dataset.id}")
    with pytest.raises(UserError, match="somebody deleted it"):
        list(client.pull(dataset))


def test_what_can_be_changed_in_the_ui_changes_no_row(client: Argilla, task: RankingTask) -> None:
    """Titles, descriptions, guidelines: the rows stay. How many must submit is put back to what the recipe says."""
    dataset = client.ensure_dataset(task)
    client.push(dataset, [RankingRecord("g", PROMPT, ["x", "y", "z"])])
    ann = as_ann(client, task)
    ann.submit(dataset, [Submission(ann.pending(dataset)[0].id, [2, 1, 3])])
    questions = client.call("GET", f"datasets/{dataset.id}/questions")["items"]
    client.call("PATCH", f"questions/{questions[0]['id']}", json={"title": "Order them", "description": "do"})
    client.call("PATCH", f"datasets/{dataset.id}", json={"guidelines": "as you like"})
    again = client.ensure_dataset(task)
    assert again == dataset
    assert [r.ranks for r in client.pull(again)] == [(2, 1, 3)]


@pytest.mark.parametrize("asked", ["ranking", "pairwise", "rating"])
def test_the_overview_finds_our_datasets_and_what_annotators_made_of_them(
    client: Argilla, task: RankingTask, asked: str
) -> None:
    kind = dataclasses.replace(
        task, asked=asked, answers=2, aspects=("accuracy", "being_kind") if asked == "rating" else (), metadata={}
    )  # fmt: skip
    dataset = client.ensure_dataset(kind)
    client.push(dataset, [RankingRecord(f"g{i}", [{"role": "user", "content": f"Which {i}?"}], ["x", "y"]) for i in range(6)])  # fmt: skip
    like = {"x": 1.0, "y": 0.0}
    annotate(client, dataset, [ScriptedAnnotator("for", like), ScriptedAnnotator("against", {"x": 0.0, "y": 1.0})])
    (found,) = dataset_statuses(client, kind.name)
    assert found.dataset is not None
    assert dataclasses.replace(found.dataset.task, metadata={}) == kind
    annotators, between, disputed = found.tables
    assert [row[:4] for row in annotators.rows] == [("scripted-against", 6, 0, 0), ("scripted-for", 6, 0, 0)]
    assert [row[-1] for row in annotators.rows] == ["0%", "0%"]
    assert between.rows == [("scripted-against, scripted-for", 0, 6, 0, 0)]
    assert sorted(row[0] for row in disputed.rows) == [f"Which {i}?" for i in range(6)]
    assert {row[1] for row in disputed.rows} == {"50%"} and len(set(disputed.links)) == 6
    assert all(str(link).startswith((f"{client.url}/r/", dataset.url)) for link in disputed.links)
    assert [share for _, share in found.agreement] == [0.0] * 6
