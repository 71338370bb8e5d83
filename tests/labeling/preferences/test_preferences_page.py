"""What the page on preferences shows is accepted as written, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from engine.stage.stage import load

PAGE = (Path(__file__).parents[3] / "docs" / "preferences.md").read_text()


def test_recipes_are_accepted() -> None:
    kinds = []
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        for step in yaml.safe_load(block).values():
            kind = load(step["kind"])
            given = {key: value for key, value in step.items() if key not in ("kind", "from")}
            kind(**{**({"seed": 0} if kind.random else {}), **given})
            ports = step["from"] if isinstance(step["from"], dict) else {}
            assert ports.keys() <= kind.takes.keys()
            kinds.append(step["kind"])
    assert {"label", "preferences", "judge", "ai_feedback", "ask"} == set(kinds)


def test_the_python_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, object] = {}
    exec(block, found)
    assert found["lists"].utility_I.argmax() == 1  # pyright: ignore
