"""The example of a stage kind of one's own works as its README says, from wherever one stands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flywheel

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
OPENINGS = [
    "A flywheel stores energy as rotation. It gives it back when the drive falters.",
    "Watt's engine needed one. Its piston pushed only now and then!",
]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path with the plugin and what its installation writes beside it: the entry points."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    packages = tmp_path / "packages"
    shutil.copytree(PLUGIN / "excerpts", packages / "excerpts")
    record = packages / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (record / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    return packages


def test_the_command_line_runs_it_from_another_folder(installed: Path, tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        program = [str(Path(sys.executable).parent / "flywheel"), *arguments]
        done = subprocess.run(program, cwd=elsewhere, env=os.environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "Gives:\n  Document" in command("stages", "excerpt")
    command("run", str(PLUGIN / "recipe.yaml"))
    assert flywheel.open("excerpts/short").to_table()["text"].to_pylist() == OPENINGS
    assert "too_few_sentences" in command("show", "excerpts/short", "--rejected")


def test_python_runs_it_as_often_as_it_likes(installed: Path) -> None:
    first, second = (flywheel.run(PLUGIN / "recipe.yaml")["short"] for _ in range(2))
    assert first.id == second.id and first.to_table()["text"].to_pylist() == OPENINGS
    assert [planned.cached for planned in flywheel.plan(PLUGIN / "recipe.yaml")] == [True, True]
    notes = flywheel.open("excerpts/notes").to_table().to_pylist()
    assert first.to_table()["parents"].to_pylist() == [[row["id"]] for row in notes[:2]]


def test_it_imports_nothing_of_ours_but_the_public_door() -> None:
    for file in (PLUGIN / "excerpts").glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if line.lstrip().startswith(("from ", "import "))]
        rooms = ("engine", "generators", "labeling", "pipelines", "training")
        assert not [line for line in lines if line.split()[1].split(".")[0] in rooms]


@pytest.mark.parametrize("edited", ["work.py", "stage.py", "words.txt"])
def test_what_was_made_by_code_that_has_changed_is_made_anew(installed: Path, edited: str) -> None:
    (installed / "excerpts" / "words.txt").write_text("a table that the work may read\n")
    flywheel.run(PLUGIN / "recipe.yaml")
    file = installed / "excerpts" / edited
    file.write_text(file.read_text() + "# another word\n")
    notes, short = flywheel.plan(PLUGIN / "recipe.yaml")
    assert notes.cached and not short.cached
    assert short.why == [f"files changed: excerpts/{edited}"]
    file.write_text(file.read_text().removesuffix("# another word\n"))
    assert all(planned.cached for planned in flywheel.plan(PLUGIN / "recipe.yaml"))
