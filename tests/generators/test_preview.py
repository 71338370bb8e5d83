"""A preview sends what the run sends, keeps nothing, and tells what the run will cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import flywheel
from engine.trials.preview import Tried, preview
from engine.trials.preview_text import lines, total
from tests.generators.faulty_server import FaultyServer

COUNT, ROWS = 40, 5
FACTS = [
    {
        "text": f"The bridge of the town number {i} was built in {1700 + i} and has {i % 7 + 2} arches.",
        "town": f"Town{i}",
    }
    for i in range(COUNT)
]
ASKED = [{"prompt": f"How many arches has the bridge of the town number {i}?"} for i in range(COUNT)]


def answer(messages: list[dict[str, str]], seed: int) -> str:
    if "Answer with JSON" in messages[-1]["content"]:
        return json.dumps({"helpfulness": seed % 5 + 1})
    return f"The bridge has {seed % 9} arches [1], as the passage says of it; that much is sure."


def recipes(url: str) -> dict[str, dict[str, Any]]:
    server = {"url": url, "model": "m", "price_in": 500.0, "price_out": 1500.0}
    facts = {"kind": "read", "paths": ["facts.jsonl"]}
    asked = {"kind": "read", "paths": ["asked.jsonl"], "rows": "Prompt"}
    return {
        "answers": {
            "asked": asked,
            "answers": {"kind": "candidates", "from": "asked", "n": 2, "server": [server], "partition": 16},
            "judged": {"kind": "judge", "from": "answers", "rubric": {"helpfulness": "Does it help?"}, "server": server},
        },
        "corpus": {
            "facts": facts,
            "kept": {"kind": "filter", "from": "facts", "min_words": 3},
            "pages": {"kind": "corpus", "from": "kept", "documents": 30, "styles": ["textbook", "story"], "server": server,
                      "partition": 8},
        },
        "grounded": {
            "facts": facts,
            "asked": asked,
            "replies": {"kind": "grounded", "from": {"documents": "facts", "prompts": "asked"}, "server": server,
                        "partition": 16},
        },
    }  # fmt: skip


def bodies(requests: list[dict[str, Any]]) -> list[str]:
    """As the server gets them, in an order of their own."""
    flat = [{**{k: v for k, v in one.items() if k != "extra_body"}, **one.get("extra_body", {})} for one in requests]
    return sorted(json.dumps(one, sort_keys=True) for one in flat)


@pytest.mark.parametrize("name", ["answers", "corpus", "grounded"])
def test_what_a_preview_sends_is_what_the_run_sends_and_what_it_costs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, ASKED)))
    got: list[dict[str, Any]] = []
    with FaultyServer(share=0, answer=answer, garble=lambda body: got.append(body)) as server:
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({"name": name, "seed": 3, "stages": recipes(server.url)[name]}))
        tried = {one.stage: one for one in preview(recipe, rows=ROWS, store=str(tmp_path / "store"))}
        assert not any(one.failed or one.skipped for one in tried.values()), tried
        told = [exchange.request for one in tried.values() for exchange in one.exchanges]
        previewed, sent = bodies(got), bodies(told)
        assert sent == previewed and len(sent) >= ROWS
        assert not list((tmp_path / "store").rglob("*.json")) and not list((tmp_path / "store").rglob("*.sqlite"))
        got.clear()
        done = flywheel.run(recipe, store=str(tmp_path / "store"))
        run = set(bodies(got))
    first = next(one for one in tried.values() if one.exchanges)
    # What is asked of rows that the first model made depends on what it made; with this server that is the same, too.
    assert set(previewed) <= run and len(run) > 4 * len(first.exchanges)
    for stage, one in tried.items():
        spent = sum(each["cost"] for each in done[stage].manifest["timings"].get("spent", {}).values())
        assert one.expected.get("cost", 0) == pytest.approx(spent, rel=0.2), stage
    assert first.rows and first.rows[0]["id"] in set(done[first.stage].to_table(["id"])["id"].to_pylist())
    shown = "\n".join(line for one in tried.values() for line in lines(one))
    assert first.exchanges[0].request["messages"][-1]["content"].splitlines()[0] in shown
    assert list(total(tried.values()))[-1] == "Nothing was kept."


def test_people_are_not_asked_and_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, ASKED)))
    with FaultyServer(share=0, answer=answer) as server:
        stages = recipes(server.url)["answers"]
        stages["ranked"] = {"kind": "label", "from": "answers"}
        stages["pairs"] = {"kind": "preferences", "from": "ranked"}
        recipe = tmp_path / "people.yaml"
        recipe.write_text(yaml.safe_dump({"name": "people", "stages": stages}))
        tried: dict[str, Tried] = {
            one.stage: one for one in preview(recipe, "pairs", rows=3, store=str(tmp_path / "s"))
        }
        env = {"PATH": "/usr/bin:/bin", "OPENAI_API_KEY": "unused", "FLYWHEEL_STORE": str(tmp_path / "s")}
        program = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
        arguments = ["preview", "people.yaml", "answers", "--rows", "2"]
        command = subprocess.run([*program, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)
        wrong = subprocess.run(
            [*program, "preview", "people.yaml", "answrs"], cwd=tmp_path, env=env, capture_output=True
        )
    assert tried["ranked"].skipped == "it goes to people" and "judged" not in tried
    assert "ranked" in tried["pairs"].skipped
    assert command.returncode == 0, command.stderr
    assert "user: How many arches" in command.stdout and "Nothing was kept." in command.stdout
    assert wrong.returncode == 2 and b"Did you mean `answers`?" in wrong.stderr


def test_a_stage_that_asks_no_model_makes_all_its_rows(tmp_path: Path) -> None:
    """What comes after it draws from all of them."""
    facts = [{**one, "metadata": {"town": one["town"]}} for one in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    stages = {
        "facts": {"kind": "read", "paths": ["facts.jsonl"]},
        "pages": {"kind": "corpus", "from": "facts", "documents": 30, "templates": ["In {{ town }}: {{ text }}"]},
    }
    recipe = tmp_path / "written.yaml"
    recipe.write_text(yaml.safe_dump({"name": "written", "stages": stages}))
    tried = {one.stage: one for one in preview(recipe, rows=3, store=str(tmp_path / "s"))}
    assert (tried["facts"].rows_out, tried["pages"].rows_out, tried["pages"].failed) == (COUNT, 30, "")
