"""`flywheel`, as notebooks and scripts import it, from wherever they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flywheel
from engine.store.store import Store

ROOMS = ("engine", "generators", "labeling", "pipelines", "training")


def test_a_recipe_runs_any_number_of_times_in_one_process(recipe: Path, tmp_path: Path) -> None:
    first = flywheel.run(recipe, store=str(tmp_path / "store"))
    second = flywheel.run(recipe, store=str(tmp_path / "store"))
    assert {name: a.digest for name, a in first.items()} == {name: a.digest for name, a in second.items()}
    assert [p.cached for p in flywheel.plan(recipe, store=str(tmp_path / "store"))] == [True] * len(first)
    assert flywheel.open("toy/model", str(tmp_path / "store")).id == first["model"].id


def test_every_public_name_is_there() -> None:
    for name in flywheel.__all__:
        assert getattr(flywheel, name).__module__ == flywheel.PUBLIC[name]
    with pytest.raises(AttributeError, match="no_such_name"):
        flywheel.no_such_name  # noqa: B018


@pytest.fixture
def crowded(recipe: Path) -> Path:
    """The recipe's folder, which also holds folders of our rooms' names and a script of a library's name."""
    for room in ROOMS:
        (recipe.parent / room).mkdir()
        (recipe.parent / room / "__init__.py").write_text("")
    for script in ("tokenize.py", "json.py"):
        (recipe.parent / script).write_text("raise SystemExit('this is somebody else\\'s script')\n")
    return recipe


def test_folders_and_scripts_where_one_stands_are_not_taken_for_ours(crowded: Path) -> None:
    # As the installed command starts: what comes first on its path is the folder that the command is in.
    program = "import sys; sys.argv[0] = 'flywheel'; from engine.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "run", crowded.name], cwd=crowded.parent, capture_output=True, text=True,
        env={**os.environ, "FLYWHEEL_STORE": str(crowded.parent / "store")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Store(str(crowded.parent / "store")).find("toy/model").kind == "Model"


def test_a_folder_in_the_way_of_an_import_is_named(crowded: Path) -> None:
    for script in ("tokenize.py", "json.py"):
        (crowded.parent / script).unlink()
    program = f"import sys; sys.path.insert(0, {str(crowded.parent)!r}); import flywheel"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{crowded.parent / 'engine'}" in done.stderr and "ImportError" in done.stderr


def test_rows_become_one_artifact_however_often(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi?", "completion": "yes"},
        {"prompt": "Hi?", "completion": "no"},
        {"prompt": "Ho?", "completion": "no"},
    ]
    made = [flywheel.from_rows(rows, "Candidate", store=str(tmp_path)) for _ in range(2)]
    assert made[0].id == made[1].id
    table = made[0].to_table().to_pylist()
    assert [row["completion"][0]["content"] for row in table] == ["yes", "no", "no"]
    assert [row["sample"] for row in table] == [0, 1, 0]
    assert len({row["prompt_id"] for row in table}) == 2
    with pytest.raises(flywheel.UserError, match="Did you mean `Prompt`"):
        flywheel.from_rows(rows, "Prompts", store=str(tmp_path))
    with pytest.raises(flywheel.UserError, match="row 1: a Document needs a `text`"):
        flywheel.from_rows(rows, store=str(tmp_path))


def test_a_notebook_shows_an_artifact_and_runs_nothing_of_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "<script>alert(1)</script>"}, {"text": "plain"}]
    artifact = flywheel.from_rows(rows, store=str(tmp_path))
    assert repr(artifact) == f"<Document {artifact.id}, 2 rows>"
    page = artifact._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "plain" in page
