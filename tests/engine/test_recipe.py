"""A wrong recipe is met with exit code 2, a message a newcomer can act on, and nothing is written."""

from __future__ import annotations

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
        ("from: louder", "from: ./not-there.jsonl", 16, ["there is no file or folder", "not-there.jsonl"]),
    ],
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


def test_fields_that_do_not_go_together_are_named_by_what_the_stage_says(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("name: two\nstages:\n  base:\n    kind: pretrain\n    from: ./here\n    steps: 3\n    epochs: 1\n")
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert str(caught.value) == f"{file}:3: stage `base`: give `steps` or `epochs`, not both."


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
