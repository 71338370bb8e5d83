"""A stage that asks a server, from a failure to the last row: a real server, real worker processes, a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flywheel
from engine.cli import app
from engine.errors import StageFailed, UserError
from engine.execution.progress import Lines
from engine.store.store import Store
from engine.view.report.page import write_report
from engine.view.status import status_of
from engine.view.unfinished import find
from tests.generators.faulty_server import FaultyServer

RECIPE = """\
name: asked
seed: 1
stages:
  answers:
    kind: candidates
    from: {{prompts: ./prompts.jsonl}}
    n: 1
    logprobs: false
    json_schema: {{type: object, properties: {{n: {{type: integer}}}}, required: [n]}}
    server: {{model: m, url: "{url}", price_in: 1000000}}
  scores:
    kind: judge
    from: {{candidates: answers}}
    rules: {{long: "LENGTH(completion)"}}
"""


def test_what_failed_is_asked_again_and_what_was_good_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"0", "1", "2", "3"}

    def answer(messages: list[dict[str, str]], seed: int) -> str:
        return "no JSON" if messages[0]["content"] in bad else '{"n": 1}'

    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(4)))
    url, recipe = str(tmp_path / "store"), tmp_path / "asked.yaml"
    store = Store(url)
    with FaultyServer(share=0, answer=answer) as server:
        recipe.write_text(RECIPE.format(url=server.url))

        def asked() -> int:
            """Requests since the last time."""
            count, server.served = sum(server.served.values()), type(server.served)()
            return count

        with pytest.raises(
            StageFailed, match=r"no row came out: invalid_json \(4\)\. The first invalid_json: it is not JSON"
        ):
            flywheel.run(recipe, store=url)
        assert asked() == 8  # four, and four repairs

        # The failed stage can be looked into by its name.
        failed = find(store, "asked/answers")
        assert failed.manifest["rejected"] == {"invalid_json": 4} and failed.rows == 0
        assert "no row came out" in failed.manifest["unfinished"]["error"]
        (row,) = [row for row in status_of(store) if row["stage"] == "answers"]
        assert row["state"] == "failed" and Path(row["log"]).exists() and "invalid_json" in row["error"]
        shown = CliRunner().invoke(app, ["show", "answers", "--rejected", "--store", url]).output
        assert "failed" in shown and "no row came out" in shown and "it is not JSON" in shown
        told = CliRunner().invoke(app, ["status", "--store", url]).output
        assert "failed" in told and row["log"] in told and "flywheel show asked/answers --rejected" in told

        # The next run asks again, and is not answered from what was bad.
        bad -= {"0", "1", "2"}
        first = flywheel.run(recipe, store=url)
        assert asked() == 3 + 2
        assert first["answers"].rows == first["scores"].rows == 3 and first["answers"].manifest["failed"] == 1
        assert find(store, "answers").id == first["answers"].id and {r["state"] for r in status_of(store)} == {"done"}
        flywheel.run(recipe, store=url)
        assert asked() == 0
        good = {row["id"] for row in first["answers"].to_table().to_pylist()}

        # A retry that fails leaves what was there.
        server.status = 401
        with pytest.raises(UserError, match="refuses the key"):
            flywheel.run(recipe, store=url, retry_failed=True)
        server.status = None
        assert store.find("answers").digest == first["answers"].digest
        assert store.find("answers").verify() == []

        # A retry asks for the bad row alone, and what was made of the stage follows.
        bad.clear()
        again = flywheel.run(recipe, store=url, retry_failed=True, view=Lines())
        assert asked() == 1
    assert [again[name].id for name in again] == [first[name].id for name in first]
    assert again["answers"].rows == again["scores"].rows == 4 and again["answers"].manifest["rejected"] == {}
    assert good < {row["id"] for row in again["answers"].to_table().to_pylist()}
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["text"] for e in events if e["event"] == "say"][:2] == [
        "1 row did not make it and is asked for again; answers that were good are kept",
        "made anew: `answers` has other rows than those it was made of",
    ]
    # Everything that was asked is counted: 8, 5 and 1 requests of ten tokens in and five out.
    (spent,) = [e["spent"] for e in events if e["event"] == "done" and "spent" in e]
    assert spent == {"tokens_in": 140, "tokens_out": 70, "cost": 140.0}
    assert again["answers"].manifest["timings"]["spent"]["m"]["tokens_in"] == 140
    cached = CliRunner().invoke(app, ["run", str(recipe), "--store", url, "--retry-failed", "--json"])
    lines = [json.loads(line) for line in cached.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["plan", "cached", "cached", "total"] and lines[-1]["spent"] == spent
    told = CliRunner().invoke(app, ["status", "--store", url]).output
    assert told.startswith("asked: 2 of 2 stages done") and "140 tokens in, 70 out, cost 140.00\n" in told
    assert (
        "140 tokens in, 70 out, cost 140.00 (m)" in CliRunner().invoke(app, ["show", "answers", "--store", url]).output
    )
    page = write_report(store, "asked", tmp_path / "asked.html").read_text()
    assert "Tokens and cost" in page and "140 tokens in, 70 out, cost 140.00 in all" in page


def test_stages_that_ask_nobody_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.execution.runner import run_plan
    from engine.plan.recipe import build_recipe

    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": ""}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body: dict[str, Any] = {"kind": "judge", "from": "./own.jsonl", "rules": {"long": "NULLIF(LENGTH(completion), 0)"}}
    recipe = build_recipe({"name": "own", "stages": {"scores": body}}, {}, "own", tmp_path)
    store = Store(str(tmp_path / "store"))
    made = run_plan(recipe, store)["scores"]
    assert made.manifest["rejected"] == {"no_verdict": 1}
    monkeypatch.setattr("engine.execution.one_stage.Maker._work", None)  # doing it again would fail
    assert run_plan(recipe, store, retry_failed=True)["scores"].id == made.id
