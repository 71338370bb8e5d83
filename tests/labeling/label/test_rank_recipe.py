"""The recipe that ranks one's own answers, in the real Argilla, with a scripted annotator in the place of a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flywheel
from engine.plan.starters import start


def test_own_answers_become_preferences(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    (recipe, *_), _ = start("mine", "rank", tmp_path)
    plain = "from: {candidates: ./rank/answers.jsonl}"
    assert plain in recipe.read_text()
    judged = "from: {candidates: ./rank/answers.jsonl, verdicts: gold}\n    scripted: [{name: ada}]"
    gold = "  gold:\n    kind: judge\n    from: ./rank/answers.jsonl\n    rules: {utility: length}\n"
    gold = gold.replace("length", "LENGTH(completion)")
    recipe.write_text(recipe.read_text().replace(plain, judged) + gold)
    done = flywheel.run(recipe, store=str(tmp_path / "store"))
    assert done["rankings"].rows == 3
    pairs = done["preferences"].to_table().to_pylist()
    assert len(pairs) == 5  # 3 answers, 2 and 2: three pairs, one and one
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in pairs)
