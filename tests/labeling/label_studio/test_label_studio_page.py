"""What the page on Label Studio shows is accepted as written; its command waits for people in a real server."""

from __future__ import annotations

from pathlib import Path

import yaml

from engine.stage.stage import load
from labeling.label_studio.studio_client import LabelStudio
from tests.test_docs import blocks, commands, flywheel

PAGE = "docs/label_studio.md"


def test_the_recipe_is_accepted() -> None:
    (block,) = blocks(PAGE, "yaml")
    (step,) = yaml.safe_load(block).values()
    made = load(step.pop("kind"))(seed=0, **{key: value for key, value in step.items() if key != "from"})
    assert made.model_dump()["tool"] == "label_studio"


def test_the_commands_wait_for_people(label_studio: LabelStudio, tmp_path: Path) -> None:
    ours = [command[1:] for command in commands(PAGE) if command[0] == "flywheel"]
    assert [command[0] for command in ours] == ["new", "run"]
    done = flywheel(tmp_path, ours[0])
    assert done.returncode == 0, done.stderr
    done = flywheel(tmp_path, ours[1])
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    assert done.returncode == 3 and f"Rank the others at {label_studio.url}/projects/" in said, said
    assert label_studio.api_key not in said
