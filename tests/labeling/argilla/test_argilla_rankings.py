"""Push, submit and pull through the real REST API."""

from __future__ import annotations

import dataclasses
import random
import stat
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from engine.errors import UserError
from labeling.argilla.client import Argilla, connect
from labeling.tool.task import Annotator, RankingRecord, RankingTask, Submission

HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="alert(1)"> **bold** \u202e "\\ é 京'


def records(count: int, answers: int = 3) -> list[RankingRecord]:
    return [
        RankingRecord(
            f"g{i}",
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {i}?"}],
            [f"answer {j} to {i}" for j in range(answers)],
            {"topic": "even" if i % 2 == 0 else "odd"},
        )
        for i in range(count)
    ]


def users(client: Argilla, task: RankingTask, *names: str) -> list[Argilla]:
    return [client.as_user(user) for user in client.ensure_users(names, task.workspace)]


def test_ranks_ties_drafts_and_discards_come_back_through_a_shuffle(client: Argilla, task: RankingTask) -> None:
    """The true rank of every candidate survives: caller's shuffle -> shown order -> ranks -> back."""
    random_order = random.Random(7)
    quality = {"best": 1, "fine": 2, "also fine": 2}  # a tie
    shown = {f"g{i}": random_order.sample(sorted(quality), 3) for i in range(12)}
    dataset = client.ensure_dataset(task)
    client.push(
        dataset,
        [RankingRecord(id, [{"role": "user", "content": "?"}], answers) for id, answers in shown.items()],
    )
    ann, bob = users(client, task, "ann", "bob")
    for index, record in enumerate(sorted(ann.pending(dataset), key=lambda record: int(record.external_id[1:]))):
        ranks = [quality[answer] for answer in record.answers]
        match index:
            case 0:
                ann.submit(dataset, [Submission(record.id, [2, None, None], "draft", correction="half")])
            case 1:
                ann.submit(dataset, [Submission(record.id, [None] * 3, "discarded")])
            case _:
                ann.submit(
                    dataset,
                    [Submission(record.id, ranks, correction=f"better than {record.external_id}", flags=["wrong"])],
                )
        bob.submit(dataset, [Submission(record.id, ranks)])

    pulled = list(client.pull(dataset))
    assert len(pulled) == len({response.id for response in pulled}) == 24
    by_key = {(response.user, response.external_id): response for response in pulled}
    for id, answers in shown.items():
        assert dict(zip(answers, by_key["bob", id].ranks, strict=True)) == quality
        if id not in ("g0", "g1"):
            response = by_key["ann", id]
            assert dict(zip(answers, response.ranks, strict=True)) == quality
            assert (response.status, response.correction, response.flags) == (
                "submitted", f"better than {id}", ("wrong",),
            )  # fmt: skip
    draft, discarded = by_key["ann", "g0"], by_key["ann", "g1"]
    assert (draft.status, draft.ranks, draft.correction) == ("draft", (2, None, None), "half")
    assert (discarded.status, discarded.ranks) == ("discarded", (None, None, None))

    progress = client.progress(dataset)
    assert (progress.total, progress.completed) == (12, 10)  # a draft and a discard do not complete a record
    assert dataclasses.astuple(progress.users["ann"]) == (10, 1, 1)
    assert dataclasses.astuple(progress.users["bob"]) == (12, 0, 0)


def test_submitting_again_replaces_and_pull_since_gives_only_what_changed(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    client.push(dataset, records(3))
    (ann,) = users(client, task, "ann")
    shown = ann.pending(dataset)
    ann.submit(dataset, [Submission(record.id, [1, 2, 3]) for record in shown])
    latest = max(response.updated_at for response in client.pull(dataset))
    ann.submit(dataset, [Submission(shown[0].id, [3, 1, 1])])
    changed = list(client.pull(dataset, since=latest + timedelta(microseconds=1)))
    assert [(response.record_id, response.ranks) for response in changed] == [(shown[0].id, (3, 1, 1))]
    assert len(list(client.pull(dataset))) == 3


def test_pushing_again_adds_only_what_is_new(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    assert dataclasses.astuple(client.push(dataset, records(300))) == (300, 0)
    (ann,) = users(client, task, "ann")
    ann.submit(dataset, [Submission(record.id, [1, 2, 3]) for record in ann.pending(dataset, 5)])
    assert dataclasses.astuple(client.push(dataset, records(560))) == (260, 300)
    assert client.progress(dataset).total == 560
    assert len(list(client.pull(dataset))) == 5  # what people answered is untouched


def test_push_refuses_other_answers_under_a_known_id(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    client.push(dataset, records(2))
    changed = dataclasses.replace(records(2)[1], answers=["other", "answers", "here"])
    with pytest.raises(UserError, match=r"already holds record 'g1' with another prompt or other answers"):
        client.push(dataset, [records(2)[0], changed])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            RankingRecord("bad", [{"role": "user", "content": "x" * 10**6}], ["a", "b", "c"]),
            "1,000,000 can be",
        ),
        (RankingRecord("bad", [{"role": "user", "content": "?"}], ["a", "b"]), "has 2 answers"),
        (RankingRecord("g0", [{"role": "user", "content": "?"}], ["a", "b", "c"]), "given twice"),
        (RankingRecord("bad", [{"role": "user", "content": "\ud800"}], ["a", "b", "c"]), "written as JSON"),
        (
            RankingRecord("bad", [{"role": "user", "content": "?"}], ["a", "b", "c"], {"x": float("nan")}),
            "JSON",
        ),
    ],
    ids=["megabyte", "too few answers", "same id twice", "lone surrogate", "nan"],
)
def test_a_bad_record_stops_the_push_before_anything_is_sent(
    client: Argilla, task: RankingTask, bad: RankingRecord, message: str
) -> None:
    dataset = client.ensure_dataset(task)
    with pytest.raises(UserError, match=message):
        client.push(dataset, [*records(3), bad])
    assert client.progress(dataset).total == 0


def test_html_reaches_the_page_as_text(client: Argilla, task: RankingTask) -> None:
    """The UI puts fields into the page as HTML: none may arrive as such. (The browser test looks"
    f" at the page.)"""
    dataset = client.ensure_dataset(task)
    answers = [HOSTILE, "", "&lt;b&gt; &amp;amp; & <"]
    client.push(dataset, [RankingRecord("h", [{"role": "user", "content": HOSTILE}], answers)])
    assert client.push(dataset, [RankingRecord("h", [{"role": "user", "content": HOSTILE}], answers)]).new == 0
    (ann,) = users(client, task, "ann")
    (shown,) = ann.pending(dataset)
    assert shown.answers == tuple(answers)
    assert shown.prompt == [{"role": "user", "content": HOSTILE}]
    (stored,) = client.call("GET", f"datasets/{dataset.id}/records")["items"]
    assert "<" not in str(stored["fields"])
    settings = [item["settings"] for item in client.call("GET", f"datasets/{dataset.id}/fields")["items"]]
    assert [setting["use_markdown"] for setting in settings] == [False] * 4


def test_a_dataset_that_asks_something_else_is_refused_and_left_alone(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    client.push(dataset, records(1))
    other = dataclasses.replace(task, answers=4, correction=False)
    with pytest.raises(UserError) as caught:
        client.ensure_dataset(other)
    message = str(caught.value)
    assert "question 'ranking' is ranking(a, b, c), expected ranking(a, b, c, d)" in message
    assert "field 'd' is missing" in message
    assert "question 'correction' is not ours" in message
    assert client.progress(dataset).total == 1


def test_a_half_made_dataset_is_finished(client: Argilla, task: RankingTask) -> None:
    """As left by a kill between two requests: some fields there, nothing published."""
    workspace_id = client.ensure_workspace(task.workspace)
    body = {"name": task.name, "workspace_id": workspace_id, "guidelines": task.guidelines}
    made = client.call("POST", "datasets", json=body)
    settings = {"type": "chat", "use_markdown": False}
    field = {"name": "prompt", "title": "Prompt", "required": True, "settings": settings}
    client.call("POST", f"datasets/{made['id']}/fields", json=field)
    dataset = client.ensure_dataset(task)
    assert dataset.id == made["id"]
    assert client.push(dataset, records(2)).new == 2
    shown = client.call("GET", f"datasets/{dataset.id}")
    assert (shown["status"], shown["distribution"]["min_submitted"]) == ("ready", 2)


def test_questions_added_on_the_server_are_met_with_a_message(client: Argilla, task: RankingTask) -> None:
    client.ensure_dataset(task)
    with pytest.raises(UserError, match="question 'flags' is not ours"):
        list(client.pull(client.ensure_dataset(dataclasses.replace(task, flags=()))))


def test_users_have_passwords_that_log_in_and_are_kept_private(client: Argilla, task: RankingTask) -> None:
    first = client.ensure_users(["ann", "carla"], task.workspace)
    assert client.ensure_users(["ann", "carla"], task.workspace) == first
    assert stat.S_IMODE(client.annotators_file.stat().st_mode) == 0o600
    for user in first:
        assert user.password is not None
        form = {"username": user.name, "password": user.password}
        token = (
            httpx.post(f"{client.url}/api/v1/token", data=form, timeout=60).raise_for_status().json()["access_token"]
        )
        me = httpx.get(f"{client.url}/api/v1/me", headers={"Authorization": f"Bearer {token}"}, timeout=60).json()
        assert (me["username"], me["role"]) == (user.name, "annotator")


def test_an_annotator_may_not_read_what_others_answered(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    (ann,) = users(client, task, "ann")
    with pytest.raises(UserError, match="does not allow this user"):
        list(ann.pull(dataset))


@pytest.mark.parametrize("name", ["x" * 1000, "", " ann", "a\nb", "a\u202eb"])
def test_impossible_user_names(client: Argilla, task: RankingTask, name: str) -> None:
    with pytest.raises(UserError, match="can't be the name of a user") as caught:
        client.ensure_users(["dora", name], task.workspace)
    assert len(str(caught.value)) < 300
    assert "dora" not in {user["username"] for user in client.call("GET", "users")["items"]}


def test_wrong_key(client: Argilla) -> None:
    with pytest.raises(UserError, match="does not know this key"):
        connect(client.url, "not-the-key")


def test_server_down(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)at http://127\.0\.0\.1:1 does not answer .*flywheel argilla status"):
        connect("http://127.0.0.1:1", "key")
    with pytest.raises(UserError, match="flywheel argilla up"):
        connect(home=tmp_path)


def test_url_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARGILLA_API_KEY", raising=False)
    with pytest.raises(UserError, match="set ARGILLA_API_KEY"):
        connect("http://127.0.0.1:1")


def test_the_server_says_why_a_submission_is_refused(client: Argilla, task: RankingTask) -> None:
    dataset = client.ensure_dataset(task)
    client.push(dataset, records(1))
    (ann,) = users(client, task, "ann")
    (shown,) = ann.pending(dataset)
    with pytest.raises(UserError, match="are not valid ranks"):
        ann.submit(dataset, [Submission(shown.id, [1, 2, 9])])
    with pytest.raises(UserError, match="2 ranks for 3 answers"):
        ann.submit(dataset, [Submission(shown.id, [1, 2])])
    assert list(client.pull(dataset)) == []


def test_tasks_that_cannot_be(task: RankingTask) -> None:
    for change, message in (
        ({"answers": 1}, "2 to 26"),
        ({"min_submitted": 0}, "at least 1"),
        ({"name": ""}, "name"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(task, **change)


def test_annotator_is_hidden_the_metadata(client: Argilla, task: RankingTask) -> None:
    """Metadata may tell where an answer came from."""
    dataset = client.ensure_dataset(task)
    client.push(dataset, records(1))
    (user,) = client.ensure_users(["ann"], task.workspace)
    assert isinstance(user, Annotator)
    shown = client.as_user(user).call("POST", f"me/datasets/{dataset.id}/records/search", json={})
    assert "even" not in str(shown)
