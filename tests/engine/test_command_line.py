"""The command line tells what it has: kinds with their fields, completion, dates, progress where nobody looks at a terminal."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flywheel as package
from engine.cli import app
from engine.execution.progress import Bars
from engine.stage.stage import kinds, load
from engine.store.store import Store
from tests.engine.view.test_shown_as_text import on_terminal

ROOT = Path(__file__).parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_version_and_the_short_help(flywheel: Command) -> None:
    assert flywheel("--version").stdout == f"flywheel {package.__version__}\n"
    assert flywheel("-h").stdout == flywheel("--help").stdout
    for arguments in (["run"], ["stage", "toy_shout"], ["gc"], ["store", "copy"]):
        assert "Usage: flywheel" in flywheel(*arguments, "-h").stdout


@pytest.mark.parametrize("kind", kinds())
def test_a_kind_tells_each_of_its_fields(kind: str) -> None:
    told = CliRunner().invoke(app, ["stage", kind, "--help"], terminal_width=100).stdout
    fields = load(kind).model_fields
    shown = [(name, " ".join(words.split())) for name, words in re.findall(r"^  (\S+)\n((?:      .*\n)+)", told, re.M)]
    assert {*fields, *load(kind).takes} <= {name for name, _ in shown}
    for name, field in fields.items():
        words = [words for shown_name, words in shown if shown_name == name]
        assert any(("; required." in one) == field.is_required() and "; " in one for one in words), (kind, name, words)


@pytest.mark.parametrize("kind", kinds())
def test_each_field_of_ours_is_documented(kind: str) -> None:
    if not kind.startswith("toy_"):
        assert [name for name, field in load(kind).model_fields.items() if not field.description] == []


def test_what_may_stand_in_a_field_is_what_it_takes() -> None:
    told = CliRunner().invoke(app, ["stage", "toy_shout", "--help"]).stdout
    assert "times\n      whole number, 1 or more; default 1." in told
    assert "style.suffix\n      text; default !." in told


def test_what_is_not_there_is_named_with_the_nearest(flywheel: Command) -> None:
    for arguments, nearest in (
        (["rnu"], "'run'"), (["run", "--stroe", "x", "r.yaml"], "`--store`"), (["stage", "toy_shuot", "-h"], "`toy_shout`"),
        (["stages", "toy_shuot"], "`toy_shout`"), (["show", "--rejectd", "x"], "--rejected"),
    ):  # fmt: skip
        done = flywheel(*arguments)
        assert done.returncode == 2 and nearest in done.stderr, done.stderr


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with the command in it."""
    command = tmp_path / "bin" / "flywheel"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from flywheel.commandline import main; main()' \"$@\"\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    return tmp_path


def completed_in_bash(words: list[str], folder: Path) -> list[str]:
    typed = " ".join(f"'{word}'" for word in words)
    program = (
        f"source <(flywheel completion bash); COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        'COMPREPLY=(); _flywheel_completion flywheel; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_tab_completes_in_bash(run_store: Store, on_path: Path) -> None:
    (on_path / "own.yaml").write_text("")
    assert completed_in_bash(["flywheel", "stag"], on_path) == ["stages", "stage"]
    assert completed_in_bash(["flywheel", "stage", "toy_sh"], on_path) == ["toy_shout"]
    assert completed_in_bash(["flywheel", "show", "toy/lo"], on_path) == ["toy/loud", "toy/louder"]
    assert completed_in_bash(["flywheel", "run", "ow"], on_path) == ["own.yaml"]
    assert completed_in_bash(["flywheel", "run", "own.yaml", "--retry"], on_path) == ["--retry-failed"]
    assert "status" in completed_in_bash(["flywheel", "argilla", ""], on_path)


def test_tab_completes_in_zsh(run_store: Store, on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script calls this, and hands what it prints to zsh's `_arguments`."""
    script = subprocess.run(["flywheel", "completion", "zsh"], capture_output=True, text=True, check=True).stdout
    assert script.startswith("#compdef flywheel") and "_FLYWHEEL_COMPLETE=complete_zsh flywheel" in script
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=script, text=True, check=True)
    monkeypatch.setenv("_FLYWHEEL_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "flywheel stage toy_sh")
    told = subprocess.run(["flywheel"], capture_output=True, text=True, check=True).stdout
    assert told.strip() == """_arguments '*: :(("toy_shout"))'"""


def test_status_tells_when_and_how_far(run_store: Store, flywheel: Command) -> None:
    told = flywheel("status").stdout
    manifest = run_store.find("toy/louder").manifest["timings"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest["started"] + manifest["wall_s"]))
    line = next(line for line in told.splitlines() if " louder " in line)
    assert line.split()[:6] == ["✓", "louder", "toy_shout", "done", "23", "rows"] and when in line
    assert told.startswith("toy: 5 of 5 stages done; 20")
    row = next(row for row in json.loads(flywheel("status", "--json").stdout) if row["stage"] == "louder")
    assert row["started"] == pytest.approx(manifest["started"])


class Planned:
    def __init__(self, name: str) -> None:
        self.name = name
        self.step = type("Step", (), {"kind": "sft"})


def test_where_nobody_looks_at_a_terminal_lines_tell_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    bars = Bars(clock=lambda: now[0])
    stage: Any = Planned("sft")
    bars.start([stage])
    for second in range(200):
        now[0] = float(second)
        bars.event(stage, {"event": "progress", "done": second, "total": 1000, "unit": "steps"})
        bars.event(stage, {"event": "metric", "step": second, "loss": 2.5})
    bars.event(stage, {"event": "done", "seconds": 200.0, "rows": 0})
    bars.stop()
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "▸ sft  sft          begins" and told[-1].startswith("✓ sft  sft          3 min 20 s")
    # After 10 s, then after 20, 40 and 80 more.
    assert [line.split(" of 1,000 steps")[0].split()[-1] for line in told[1:-1]] == ["10", "30", "70", "150"]
    assert all("loss 2.5" in line for line in told[1:-1])


def test_a_recipe_that_is_not_there_has_a_neighbour_or_a_starter(recipe: Path, flywheel: Command) -> None:
    assert "Did you mean `toy.yaml`?" in flywheel("plan", "tyo.yaml").stderr
    assert "`flywheel new quickstart` writes one" in flywheel("run", "quickstart").stderr


def test_on_a_terminal_a_finished_line_keeps_its_mark_and_name() -> None:
    program = """
from engine.execution.progress import Bars
from tests.engine.test_command_line import Planned
bars = Bars(); stages = [Planned("docs"), Planned("facts")]; bars.start(stages)
for stage in stages:
    bars.event(stage, {"event": "progress", "done": 1, "total": 2, "unit": "rows"})
for stage in stages:
    bars.event(stage, {"event": "done", "seconds": 1.0, "rows": 299})
bars.stop()
"""
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(program))
    for name in ("docs", "facts"):
        assert re.search(rf"✓ {name} +sft +1\.0 s, 299 rows", told), told
