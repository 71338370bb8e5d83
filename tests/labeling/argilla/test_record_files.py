"""Files in and out through the command line and the real server."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from engine.errors import UserError
from labeling.argilla import record_files
from labeling.argilla.client import Argilla
from labeling.argilla.commands import app
from labeling.argilla.dataset_status import dataset_statuses
from labeling.label.scripted import ScriptedAnnotator, annotate
from labeling.tool.task import Dataset, RankingRecord, RankingTask, Submission, own_task


def test_a_file_goes_to_annotators_and_comes_back_in_its_own_order(
    client: Argilla, task: RankingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    worth = {"best": 3.0, "fine": 2.0, "poor": 1.0}
    rows = [{"id": f"q{i}", "prompt": f"Question {i}?", "answers": ["poor", "best", "fine"]} for i in range(8)]
    file = tmp_path / "in.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    arguments = ["push", str(file), "--dataset", task.name, "--workspace", task.workspace, "--per-record", "2"]
    assert "8 new records, 0 were there" in CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "0 new records, 8 were there" in CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    dataset = client.ensure_dataset(RankingTask(task.name, 3, task.workspace, min_submitted=2))
    assert len({record.answers for record in client.records(dataset)}) > 1  # people see them shuffled
    annotate(client, dataset, [ScriptedAnnotator("one", worth), ScriptedAnnotator("two", worth)])
    out = tmp_path / "out" / "judged.jsonl"
    CliRunner().invoke(app, ["pull", task.name, "--to", str(out)], catch_exceptions=False)
    judged = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(j["id"], j["annotator"]) for j in judged} == {
        (f"q{i}", f"scripted-{n}") for i in range(8) for n in ("one", "two")
    }
    assert all((j["answers"], j["ranks"]) == (["poor", "best", "fine"], [3, 1, 2]) for j in judged)
    with pytest.raises(UserError, match="Did you mean"):
        record_files.pull(client, task.name + "x", out)
    told = CliRunner().invoke(app, ["status", task.name], catch_exceptions=False).stdout
    assert task.name in told and "scripted-one, scripted-two" in told


def test_two_annotators_see_only_their_records_and_a_lead_how_they_agree_meanwhile(
    client: Argilla, task: RankingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    people = ("dealt-ann", "dealt-bob", "dealt-cat")
    rows = [
        {"id": f"q{i}", "prompt": f"Question {i}?", "answers": ["x", "y"], "source": {"line": i}} for i in range(30)
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["push", str(file), "--dataset", task.name, "--workspace", "dealt", "--per-record", "2"]
    said = CliRunner().invoke(app, [*arguments, *(f"--annotator={one}" for one in people)], catch_exceptions=False)
    assert "60 new records" in said.stdout and "dealt-bob: http" in said.stdout

    whole = RankingTask(task.name, 2, "dealt", min_submitted=2)
    seen: dict[str, set[str]] = {}
    for one in people:
        (user,) = client.ensure_users([one], f"dealt-{one}")
        own = client.as_user(user)
        assert [item["name"] for item in own.call("GET", "me/workspaces")["items"]] == [f"dealt-{one}"]
        (mine,) = own.call("GET", "me/datasets")["items"]
        dataset = Dataset(mine["id"], mine["workspace_id"], own_task(whole, one), client.url)
        records = list(own.records(dataset))
        assert not any(record.metadata for record in records)  # columns of one's own are for the lead
        seen[one] = {record.external_id for record in records}
        if one != "dealt-cat":  # labelling goes on: two judge what they have been dealt, one the other way round
            order = ("x", "y") if one == "dealt-ann" else ("y", "x")
            own.submit(dataset, [Submission(r.id, [1 + order.index(a) for a in r.answers]) for r in records])
    assert Counter(id for ids in seen.values() for id in ids) == {row["id"]: 2 for row in rows}
    assert len(set(map(frozenset, seen.values()))) == 3

    (found,) = dataset_statuses(client, task.name)
    both = len(seen["dealt-ann"] & seen["dealt-bob"])
    between = next(table for table in found.tables if table.title.startswith("Two annotators"))
    assert between.rows == [("dealt-ann, dealt-bob", 0, both, 0, 0)] and found.workspace == "dealt"
    assert (found.progress.total, found.agreement[-1]) == (60, (both, 0.0))
    disputed = next(table for table in found.tables if table.title == "Disputed records")
    assert len(disputed.rows) == min(both, 20) and all(link and len(link) < 60 for link in disputed.links)
    place = httpx.get(str(disputed.links[0]), timeout=60)
    assert place.is_redirect and "?status=submitted&search=" in place.headers["location"]

    out = tmp_path / "judged.jsonl"
    pulled = CliRunner().invoke(
        app, ["pull", task.name, "--to", str(out), "--workspace", "dealt"], catch_exceptions=False
    )
    judged = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"{len(judged)} judgements" in pulled.stdout and len(judged) == len(seen["dealt-ann"]) + len(
        seen["dealt-bob"]
    )
    assert all(j["source"] == {"line": int(j["id"][1:])} and j["answers"] == ["x", "y"] for j in judged)
    with pytest.raises(UserError, match="2 are named"):
        record_files.push(client, replace(whole, min_submitted=3), record_files.read_records(file), people[:2])


def test_what_a_deleted_user_judged_stays(client: Argilla, task: RankingTask) -> None:
    task = replace(task, answers=2)
    dataset = client.ensure_dataset(task)
    client.push(dataset, [RankingRecord("q", [{"role": "user", "content": "?"}], ["x", "y"])])
    name, idle = f"gone-{uuid4().hex[:8]}", f"idle-{uuid4().hex[:8]}"
    for round in ("gone", "again"):
        user, other = client.ensure_users([name, idle], task.workspace)
        theirs = client.as_user(user)
        (record,) = theirs.records(dataset)
        theirs.submit(dataset, [Submission(record.id, [1, 2])])
        ids = {one["username"]: one["id"] for one in client.call("GET", "users")["items"]}
        for one in (user, other):
            client.call("DELETE", f"users/{ids[one.name]}")
        with pytest.raises(UserError, match="does not know this key"):
            theirs.me()
        wanted = [f"{name} (deleted)", *([f"{name} (deleted 2)"] if round == "again" else [])]
        assert {response.user for response in client.pull(dataset)} == set(wanted)
        assert idle not in str(client.call("GET", "users"))  # who judged nothing is gone


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[1]", "2: a JSON object was expected, found list"),
        ('{"prompt": "?", "answer": ["a", "b"]}', "2: no `answers`, but 'answer': is that it?"),
        ('{"prompt": "?", "answers": ["a", "b"], "ranks": [1]}', "2: 'ranks' is a column of what comes back"),
        ('{"prompt": 3, "answers": ["a", "b"]}', "2: `prompt` must be a text"),
        ('{"prompt": "?", "answers": ["a"]}', "2: `answers` must be a list of two texts"),
    ],
)
def test_wrong_lines_are_told_by_number(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "?", "answers": ["a", "b"]}\n' + line)
    with pytest.raises(UserError) as caught:
        record_files.read_records(file)
    assert message in str(caught.value) and "1 of 2 lines" in str(caught.value)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name, message in (
        ("empty.jsonl", "holds no record"),
        ("binary.jsonl", "UTF-8"),
        ("none.jsonl", "can't be read"),
    ):
        with pytest.raises(UserError, match=message):
            record_files.read_records(tmp_path / name)
