"""The label stage against the real server: what scripted annotators see is what comes back, through the shuffle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError, Waiting
from engine.plan.inputs import resolve
from engine.store.artifact import Artifact
from labeling.argilla.dataset_status import dataset_statuses
from labeling.label.stage import Label
from labeling.tool.task import Submission

ANSWERS = ["the best", "good", "poor", "the worst"]


@pytest.fixture
def inputs(given: Callable[..., Artifact], client: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """Six prompts with four answers each (and one whose answers are all the same), judged 3, 2, 1, 0."""
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    return made_of(given, lambda p: ANSWERS if p < 6 else ["same", "same"])


def made_of(given: Callable[..., Artifact], answers: Callable[[int], list[str]]) -> dict[str, Artifact]:
    candidates: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    for p in range(7):
        for a, text in enumerate(answers(p)):
            candidate_id = f"{p:016x}{a:016x}"
            candidates.append({
                "id": candidate_id, "parents": [f"{p:032x}"], "prompt_id": f"{p:032x}", "model": "m", "seed": a, "sample": a,
                "prompt": [{"role": "user", "content": f"Question {p}?"}], "completion": [{"role": "assistant", "content": text}],
            })  # fmt: skip
            verdicts.append({
                "id": f"{p:08x}{a:024x}", "parents": [candidate_id], "subject": candidate_id, "metric": "utility", "value": 3.0 - a,
            })  # fmt: skip
    return {"candidates": given("Candidate", candidates), "verdicts": given("Verdict", verdicts)}


def test_ranks_find_their_candidates_through_the_shuffle(
    client: Any, inputs: dict[str, Artifact], build: Callable[..., Artifact]
) -> None:
    annotators = [{"name": name} for name in ("ada", "ben", "cleo")]
    made = build("label", inputs, per_record=2, scripted=annotators, dataset="label-test")
    rows = made.to_table().to_pylist()
    assert len(rows) == 6 * 2
    for row in rows:
        assert dict(zip(row["completions"], row["ranks"], strict=True)) == dict(zip(ANSWERS, [1, 2, 3, 4], strict=True))
        assert row["annotator_kind"] == "scripted" and row["annotator"].startswith("scripted-")
        assert row["parents"] == row["candidates"] and sorted(row["shown"]) == [0, 1, 2, 3]
    assert len({tuple(row["shown"]) for row in rows}) > 1
    assert made.manifest["rejected"] == {"one_answer": 1}


def test_answers_from_a_plain_file_are_ranked_prompt_by_prompt(
    client: Any, store: Any, build: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """80 answers to 20 prompts, none of which has a `prompt_id`: 20 records of four answers."""
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    own = [
        {"id": f"{p}-{a}", "prompt": f"Q{p}?", "completion": text} for a, text in enumerate(ANSWERS) for p in range(20)
    ]
    judged = [{"subject": row["id"], "metric": "utility", "value": -float(row["id"][-1])} for row in own]
    inputs: dict[str, Artifact] = {}
    for name, kind, rows in (("candidates", "Candidate", own), ("verdicts", "Verdict", judged)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        inputs[name] = resolve(f"{name}.jsonl", tmp_path, (kind,), store).adopt(store)
    made = build("label", inputs, per_record=1, scripted=[{"name": "ada"}], dataset="label-own")
    rows = made.to_table().to_pylist()
    assert made.manifest["summary"]["prompts"] == len(rows) == 20 and not made.manifest["rejected"]
    assert {row["prompt"][0]["content"] for row in rows} == {f"Q{p}?" for p in range(20)}
    for row in rows:
        number = row["prompt"][0]["content"][1:-1]
        assert sorted(row["candidates"]) == [f"{number}-{a}" for a in range(4)]
        assert dict(zip(row["completions"], row["ranks"], strict=True)) == dict(zip(ANSWERS, [1, 2, 3, 4], strict=True))


def test_without_stand_ins_the_stage_waits_for_people(
    client: Any, inputs: dict[str, Artifact], build: Callable[..., Artifact], store: Any
) -> None:
    with pytest.raises(Waiting, match=r"0 of 6 prompts are ranked. Rank the others at http"):
        build("label", {"candidates": inputs["candidates"]}, dataset="label-people")
    assert not [a for a in store.artifacts() if a.id.startswith("label-")]


def test_the_dataset_is_called_as_the_recipe_says_and_another_run_s_apart(
    client: Any, inputs: dict[str, Artifact], build: Callable[..., Artifact]
) -> None:
    for answers in (4, 4, 3):  # of three answers other records are made
        with pytest.raises(Waiting):
            build(
                "label", {"candidates": inputs["candidates"]}, dataset="team3", workspace="label-names", answers=answers
            )
    found = [o for o in dataset_statuses(client, judgements=False) if o.workspace == "label-names"]
    first, second = sorted(o.name for o in found)
    assert first == "team3" and second.startswith("team3-") and [o.progress.total for o in found] == [6, 6]


def test_when_people_are_done_the_stage_goes_on_and_loses_no_discard(
    client: Any, inputs: dict[str, Artifact], build: Callable[..., Artifact]
) -> None:
    # Names of their own: the stage keeps passwords by the server's address, other tests by its folder.
    config = dict(
        dataset="label-done", people=["edith", "frank"], flags=["can't judge", "unsafe"], workspace="label-done", top=1
    )
    with pytest.raises(Waiting):
        build("label", {"candidates": inputs["candidates"]}, **config)
    edith, frank = (client.as_user(user) for user in client.ensure_users(["edith", "frank"], "label-done"))
    (found,) = (o for o in dataset_statuses(client) if o.workspace == "label-done")
    assert found.dataset is not None
    dataset = replace(found.dataset, task=replace(found.dataset.task, top=1))
    first, *rest = frank.pending(dataset)
    frank.submit(dataset, [Submission(first.id, [None] * 4, "discarded", flags=["can't judge"])])
    for record in [first, *rest]:
        best = [1 if answer == "the best" else None for answer in record.answers]
        edith.submit(dataset, [Submission(record.id, best)])
    made = build("label", {"candidates": inputs["candidates"]}, **config)
    rows = made.to_table().to_pylist()
    assert len(rows) == 6 and {row["annotator"] for row in rows} == {"edith"}
    for row in rows:
        assert [r for r, text in zip(row["ranks"], row["completions"], strict=True) if text == "the best"] == [1]
        assert row["ranks"].count(None) == 3
    assert made.manifest["rejected"] == {"discarded": 1, "one_answer": 1}
    assert "by frank; can't judge" in made.rejected().column("detail").to_pylist()


def test_stand_ins_without_verdicts_are_refused(inputs: dict[str, Artifact], build: Callable[..., Artifact]) -> None:
    with pytest.raises(UserError, match="need `verdicts`"):
        build("label", {"candidates": inputs["candidates"]}, scripted=[{"name": "ada"}])


def test_ratings_attention_checks_and_an_order_for_each_annotator(
    client: Any, inputs: dict[str, Artifact], given: Callable[..., Artifact], build: Callable[..., Artifact]
) -> None:
    """Everything at once: two of three annotators a prompt, each with a dataset, an order and checks of their own."""
    own = made_of(given, lambda p: [f"{text} of {p}" for text in ANSWERS])
    annotators = [{"name": name} for name in ("ada", "ben", "cleo")]
    made = build(
        "label", own, per_record=2, scripted=annotators, dataset="label-own", orders="annotator", aspects=["accuracy"],
        attention=0.3,
    )  # fmt: skip
    rows = made.to_table().to_pylist()
    real, checks = [r for r in rows if r["planted"] is None], [r for r in rows if r["planted"] is not None]
    assert (len(real), len(checks)) == (7 * 2, 2 * 2) and made.manifest["summary"]["attention_checks"] == 2
    orders: dict[str, set[tuple[int, ...]]] = {}
    for row in real:
        place = [ANSWERS.index(text.rpartition(" of ")[0]) for text in row["completions"]]
        assert row["ranks"] == [p + 1 for p in place] and row["ratings"]["accuracy"] == [5 - p for p in place]
        orders.setdefault(row["prompt_id"], set()).add(tuple(row["shown"]))
    assert sum(len(found) == 2 for found in orders.values()) >= 5  # one in 24 agree by chance
    for row in checks:
        place = row["candidates"].index(row["planted"])
        assert row["ranks"][place] == 4 and row["completions"][place][-1] != row["prompt"][0]["content"][-2]
    told = {table["title"]: table["rows"] for table in json.loads(made.log("tables.json"))}
    count = {name: sum(r["annotator"] == name for r in real) for name in sorted({r["annotator"] for r in real})}
    assert {row[0]: row[1] for row in told["Annotators"]} == count and sum(count.values()) == 14
    assert {row[-1] for row in told["Annotators"]} == {"100%"} and told["Disputed records"] == []
    assert made.log("metrics.parquet") is not None  # agreement over time, for the report


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"asked": "pairwise"}, "set `answers: 2`"),
        ({"asked": "rating"}, "needs `aspects`"),
        ({"flags": ["unsafe"]}, "two `flags` or more"),
        ({"top": 4}, "`top` goes with rankings of more answers"),
        ({"orders": "annotator", "per_record": 2, "people": ["ann"]}, "name that many `people`"),
        ({"asked": "rating", "aspects": ["a"], "suggest": True}, "ratings can't be suggested"),
    ],
)
def test_questions_that_cannot_be(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Label(seed=0, **config)
