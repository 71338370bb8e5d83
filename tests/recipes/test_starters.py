"""The recipes to start from, copied as the command copies them and run to their ends on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel
from engine.plan.recipe import load_recipe, names_in
from engine.plan.starters import HOME, starters
from tests.generators.faulty_server import FaultyServer
from tests.training import tiny_chat

MODEL = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`new("dpo")`: the recipe as `flywheel new` copies it, with a tiny model in place of the one it names."""
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))

    def copy(*arguments: str) -> Path:
        done = command(tmp_path, "new", *arguments)
        assert done.returncode == 0, done.stderr
        recipe = tmp_path / f"{arguments[0]}.yaml"
        text = recipe.read_text()
        if MODEL in text:
            recipe.write_text(text.replace(MODEL, str(tiny_chat.save(tmp_path / "model"))))
        return recipe

    return copy


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from flywheel.commandline import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, env=os.environ
    )


def test_they_are_listed_with_what_they_do_and_each_has_a_line_in_the_readme(tmp_path: Path) -> None:
    told = command(tmp_path, "new").stdout.splitlines()
    names = sorted(file.stem for file in HOME.glob("*.yaml"))
    assert [line.split()[0] for line in told] == names and all(len(line.split()) > 5 for line in told)
    readme = (HOME.parent / "README.md").read_text()
    assert not [name for name in names if f"(recipes/{name}.yaml)" not in readme]
    assert {"curate", "instructions", "rank", "sft_lora", "dpo", "grpo_own_rewards"} <= set(names)


@pytest.mark.parametrize("name", [starter.name for starter in starters()])
def test_each_is_called_as_its_file_and_needs_no_file_but_its_own(name: str) -> None:
    recipe = load_recipe(HOME / f"{name}.yaml")
    assert recipe.name == name
    (starter,) = (one for one in starters() if one.name == name)
    mine = [f"./{file}" for file in starter.files()]
    named = [one for step in recipe.steps.values() for one in names_in(step.given) if one.startswith("./")]
    named += [
        f"./{one}" for step in recipe.steps.values() for one in getattr(step.config, "paths", []) if ":" not in one
    ]
    assert not [one for one in named if not any(file.startswith(one) for file in mine)]


def test_a_copy_has_its_own_name_its_files_and_says_what_to_change(tmp_path: Path) -> None:
    done = command(tmp_path, "new", "mine", "--from", "grpo_own_rewards")
    text = (tmp_path / "mine.yaml").read_text()
    assert "\nname: mine\n" in text and (tmp_path / "grpo_own_rewards" / "rewards.py").exists()
    changed = [line for line in done.stdout.splitlines() if line.startswith("  mine.yaml:")]
    assert len(changed) == text.count("# change:") > 2
    for line in changed:
        _, number, what = line.split(":", 2)
        assert text.splitlines()[int(number) - 1].endswith(f"# change: {what.strip()}")
    assert command(tmp_path, "new", "other", "--from", "grpo_own_rewards").returncode == 0  # the same files serve both


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["curat"], "there is no recipe `curat` to start from. Did you mean `curate`"),
        (["mine"], "flywheel new mine --from RECIPE"),
        (["mine", "--from", "sft"], "Did you mean `sft_lora`"),
        (["../mine", "--from", "dpo"], "`../mine` is no name for a recipe"),
        (["dpo"], "pairs.jsonl: there already, and not overwritten"),
        (["curate"], "curate.yaml: there already, and not overwritten"),
    ],
)
def test_nothing_is_overwritten_and_what_is_not_there_is_told(tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "dpo").mkdir()
    for mine in (tmp_path / "dpo" / "pairs.jsonl", tmp_path / "curate.yaml"):
        mine.write_text("mine")
    done = command(tmp_path, "new", *arguments)
    assert done.returncode == 2 and says in done.stderr
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")) == [
        "curate.yaml",
        "dpo",
        "dpo/pairs.jsonl",
    ]
    assert (tmp_path / "curate.yaml").read_text() == "mine"


def test_curate(new: Callable[..., Path]) -> None:
    done = flywheel.run(new("curate"))
    sources = sorted(done["safe"].to_table()["source"].to_pylist())
    assert len(sources) == 2 and sources[1].endswith("potters.txt")
    assert "<EMAIL>" in "".join(done["safe"].to_table()["text"].to_pylist())
    reasons = {reason for stage in done.values() for reason in stage.manifest["rejected"]}
    assert {"gopher_words", "no_drafts", "contaminated"} < reasons


def test_instructions(new: Callable[..., Path]) -> None:
    def answer(messages: list[dict[str, str]], seed: int) -> str:
        asked = messages[-1]["content"]
        if asked.startswith("Rate"):
            return json.dumps({"score": 2 if "leap" in asked else 5})
        return f"What about {' '.join(asked.split('Answer:')[1].split()[:4])}?"

    with FaultyServer(share=0.0, answer=answer) as server:
        done = flywheel.run(new("instructions"), overrides=[f"tasks.server={{model: m, url: '{server.url}'}}"])
    asked = [row["messages"][0]["content"] for row in done["tasks"].to_table().to_pylist()]
    assert sorted(asked) == ["What about Sourdough rises by wild?", "What about To bleed a radiator,?"]
    assert done["tasks"].manifest["rejected"] == {"low_score": 1} and done["pages"].manifest["rejected"] == {
        "min_words": 1
    }


TINY = ["lora={r: 2}", "epochs=1", "max_length=64"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("sft_lora", "sft"), ("dpo", "dpo")])
def test_training(new: Callable[..., Path], name: str, stage: str) -> None:
    done = flywheel.run(new(name), overrides=[f"{stage}.{one}" for one in TINY], only=[stage])
    assert done[stage].kind == "Model" and (done[stage].path / "model.safetensors").exists()


@pytest.mark.slow
def test_grpo_with_own_rewards(new: Callable[..., Path]) -> None:
    recipe = new("grpo_own_rewards")
    small = ["lora={r: 2}", "iterations=1", "rollouts=4", "samples=2", "max_tokens=4"]
    first = ["before.engine=transformers", "before.max_tokens=4", "before.n=1"]
    done = flywheel.run(recipe, overrides=[*first, *(f"grpo.{one}" for one in small)])
    assert done["grpo"].kind == "Model"
    verdicts: list[dict[str, Any]] = done["scores"].to_table().to_pylist()
    assert {row["metric"] for row in verdicts} == {"right", "brief"} and len(verdicts) == 16
    assert "grpo_own_rewards/rewards.py" in done["grpo"].manifest["identity"]["sources"]
