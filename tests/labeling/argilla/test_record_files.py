"""Files in and out through the command line and the real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.errors import UserError
from labeling.argilla import record_files
from labeling.argilla.client import Argilla
from labeling.argilla.commands import app
from labeling.argilla.task import RankingTask
from labeling.label.scripted import ScriptedAnnotator, annotate


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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[1]", "2: a JSON object was expected, found list"),
        ('{"prompt": "?", "answer": ["a", "b"]}', "2: unknown key 'answer' Did you mean `answers`"),
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
