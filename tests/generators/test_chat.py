"""Talking to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from generators.chat import app


def test_two_models_answer_every_question(tiny: Path) -> None:
    arguments = [str(tiny), "--versus", str(tiny), "--max-tokens", "4", "--temperature", "0"]
    done = CliRunner().invoke(app, arguments, input="hello\n/new\nhello\n\n")
    assert done.exit_code == 0, done.output
    answers = [line.rpartition("▸")[2] for line in done.output.splitlines() if str(tiny) in line]
    assert len(answers) == 4 and len(set(answers)) == 1


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    done = CliRunner().invoke(app, ["nowhere"])
    assert done.exit_code == 2 and "no finished artifact `nowhere`" in done.output
