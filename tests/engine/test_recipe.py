"""A wrong recipe is met with exit code 2, a message a newcomer can act on, and nothing is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.plan.plan import make_plan
from engine.plan.recipe import load_recipe
from engine.store.store import Store
from tests.engine.conftest import RECIPE


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("    steps: 3", "    stesp: 3", 20, ["`stesp` is not a field of `toy_train`", "Did you mean `steps`?"]),
        ("kind: toy_read", "kind: toy_raed", 5, ["no stage kind `toy_raed`", "Did you mean `toy_read`?"]),
        ("seed: 3", "sede: 3", 2, ["`sede` is not a recipe key", "Did you mean `seed`?"]),
        ("seed: 3", "seed: three", 2, ["`seed` should be a int", "'three'"]),
        ("    steps: 3", "    steps: many", 20, ["`steps`", "valid integer", "'many'"]),
        ("    times: 2", "    times: 0", 13, ["`times`", "greater than or equal to 1"]),
        ("    times: 2", "    style: {sufix: '?'}", 13, ["style.sufix", "Did you mean `suffix`?"]),
        ("from: loud\n", "from: laud\n", 12, ["takes from `laud`", "Did you mean `loud`?"]),
        ("from: lines\n  louder", "from: louder\n  louder", 7, ["in a circle: loud -> louder -> loud"]),
        ("from: louder", "from: {documets: louder}", 16, ["no input `documets`", "Did you mean `documents`?"]),
        (
            "    from: lines\n    steps",
            "    from: [lines, loud]\n    steps",
            19,
            ["takes one `documents`, found 2: `lines`, `loud`"],
        ),
        ("    from: louder\n", "", 14, ["needs `from:`", "documents (Document)"]),
        ("path: lines.txt", "path: lines.txt\n    path: other.txt", 7, ["`path` stands twice"]),
        ("path: lines.txt", "path: [", 0, ["this is not YAML"]),
        ("    times: 2", "    times: 010", 13, ["`010` is a number in eights to YAML, 8. Write 10"]),
        ("    times: 2", "    times: 1:30", 13, ["`1:30` is a number in sixties"]),
        ("    times: 2", "    times: 0o10", 13, ["`times`", "valid integer", "'0o10'"]),
        (
            "    times: 2",
            "    style: {suffix: no}",
            13,
            ["valid string, found False", "YAML reads yes, no, on", "in quotes"],
        ),
        (
            "    times: 2",
            "    style: {suffix: 2024-01-01}",
            13,
            ["valid string", "YAML reads this as a date: put it in quotes"],
        ),
        ("    times: 2", "    style: {suffix: {{ text }}}", 13, ["a key is a word", "stands in quotes"]),
        ("seed: 3", "seed: " + "9" * 5000, 2, ["this number has 5000 digits"]),
        ("name: toy", 'name: "a\\0b"', 1, ["a recipe's name", "found 'a\\x00b'"]),
        ("name: toy", "name: x/y", 1, ["a recipe's name", "no `/` in it", "found 'x/y'"]),
        ("name: toy", "name: " + "x" * 300, 1, ["a recipe's name", "at most 100 bytes"]),
        ("  loud:", "  " + "l" * 300 + ":", 7, ["a stage's name is at most 100 letters"]),
        ("seed: 3", "seed: &a [*a]", 2, ["this holds itself"]),
        ("seed: 3", "seed: " + "[" * 3000 + "]" * 3000, 2, ["more than 100 deep"]),
        (
            "seed: 3",
            "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
            0,
            ["repeats itself by aliases"],
        ),
        ("from: louder", "from: ./not-there.jsonl", 16, ["there is no file or folder", "not-there.jsonl"]),
    ],
    ids=lambda value: str(value).strip()[:40],
)
def test_mistakes_are_explained(recipe: Path, old: str, new: str, line: int, says: list[str], tmp_path: Path) -> None:
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new, 1))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as caught:
        make_plan(load_recipe(recipe), Store(str(tmp_path / "store")))
    for text in says:
        assert text in str(caught.value)
    if line:
        assert f"toy.yaml:{line}:" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("begins", "about"),
    [
        ("", ""),
        ("# yaml-language-server: $schema=x\n#\n# What it is\n# for.\n#\n#   flywheel run\n", "What it is for."),
        ("# A comment.\ndescription: |\n  In words\n  of its own.\n", "In words of its own."),
        ("\n# Not at the beginning.\n", ""),
        ("# turned \u202e\n", "turned \\u202e"),
        (f"# {'x' * 1000}\n", "x" * 600),
    ],
)
def test_what_a_recipe_is_for(recipe: Path, begins: str, about: str) -> None:
    recipe.write_text(begins + RECIPE)
    assert load_recipe(recipe).about == about


def test_fields_that_do_not_go_together_are_named_by_what_the_stage_says(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("name: two\nstages:\n  base:\n    kind: pretrain\n    from: ./here\n    steps: 3\n    epochs: 1\n")
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert str(caught.value) == f"{file}:3: stage `base`: give `steps` or `epochs`, not both."


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("loud.times=010", "`--set loud.times=010`: `010` is a number in eights"),
        ("loud.times=[", "`--set loud.times=[`: this is not YAML"),
        ("lines.path.x=3", "`lines.path` is 'lines.txt', which has no `x` in it"),
        ("loud.times={{ q }}", "`times`: Input should be a valid integer.*found '{{ q }}'"),
    ],
)
def test_a_setting_that_is_not_yaml_is_told_in_words(recipe: Path, setting: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says).replace(re.escape(".*"), ".*")):
        load_recipe(recipe, [setting])


def test_a_template_in_a_setting_is_text(recipe: Path) -> None:
    loud = load_recipe(recipe, ["loud.style.suffix={{ q }}: {% if a %}"]).steps["loud"].config
    assert loud.style.suffix == "{{ q }}: {% if a %}"  # pyright: ignore


def test_the_command_says_it_with_exit_code_2_and_writes_nothing(recipe: Path, flywheel: Any, tmp_path: Path) -> None:
    recipe.write_text(RECIPE + "  wrong:\n    kind: toy_shout\n    from: model\n")
    done = flywheel("plan", recipe)
    assert done.returncode == 2
    assert "toy.yaml:23: stage `wrong` (toy_shout) can't take from `model`, which gives Model." in done.stderr
    assert "It takes `documents` (Document, any number)." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_recipe_that_is_not_there(flywheel: Any) -> None:
    done = flywheel("run", "nowhere.yaml")
    assert done.returncode == 2 and "there is no recipe nowhere.yaml" in done.stderr


def test_a_plan_loads_no_library_that_only_the_work_needs() -> None:
    """A second run is a plan and nothing more: torch alone would cost it 2 to 3 s."""
    look = (
        "import sys; from engine.stage.stage import kinds, load; [load(kind) for kind in kinds()];"
        "print([m for m in ('torch', 'transformers', 'trl', 'vllm', 'datasets', 'argilla') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "[]\n"
