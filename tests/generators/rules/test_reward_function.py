"""Python functions of one's own as rules: what they are called with, whose fault it is when they fail, and what is in the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from engine.errors import UserError
from engine.plan.plan import make_plan
from engine.plan.recipe import load_recipe
from engine.stage.preflight import Preflight
from engine.store.store import Store
from generators.judge.stage import Judge
from generators.rules import reward_function
from generators.rules.rule import PythonRule, sources
from generators.rules.verify import measure, values
from training.evaluate.stage import Evaluate
from training.rl.grpo_stage import Grpo
from training.rl.ppo.stage import Ppo
from training.rl.rollouts import Question, Rollout
from training.rl.scoring import Scorer, frame

ANSWERS = ["Paris.", "", "I think that it is Rome", "Oslo"]


def rollouts() -> list[Rollout]:
    questions = [
        Question(
            f"q{i}",
            [{"role": "system", "content": "s"}, {"role": "user", "content": f"Question {i}?"}],
            f"ref {i}",
            [1],
        )
        for i in range(len(ANSWERS))
    ]
    return [Rollout(q, [7] * (i + 1), text, "stop") for i, (q, text) in enumerate(zip(questions, ANSWERS, strict=True))]


def measured(folder: Path, body: str, **rule: Any) -> Any:
    """The rule with this module's function `score`, on the answers."""
    module = f"rewards_{abs(hash(str(folder)))}"
    (folder / f"{module}.py").write_text(body)
    return values(PythonRule(python=f"{module}.py:score", **rule), frame(rollouts()), "mine", str(folder))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def score(completions): return [len(text) for text in completions]", [6, 0, 23, 4]),
        ("def score(prompts, completions, **kwargs): return [p == 'Question 2?' for p in prompts]", [0, 0, 1, 0]),
        ("def score(**columns): return [float(r[-1]) for r in columns['reference']]", [0, 1, 2, 3]),
        ("def score(length, completions=None): return [None if n == 2 else n for n in length]", [1, None, 3, 4]),
        ("import numpy as np\ndef score(completions, **_): return np.array([len(c) for c in completions])", [6, 0, 23, 4]),
        ("import torch\ndef score(completion_ids, **_): return torch.tensor([sum(i) for i in completion_ids])", [7, 14, 21, 28]),
        ("def score(completions, **_):\n    most = max(map(len, completions))\n    return [len(c) / most for c in completions]",
         [6 / 23, 0, 1, 4 / 23]),
    ],
)  # fmt: skip
def test_it_gets_what_it_names_and_gives_a_number_a_row(
    tmp_path: Path, body: str, expected: list[float | None]
) -> None:
    one = measured(tmp_path, body)
    assert one.values.to_list() == pytest.approx(expected) and not one.faults


def test_a_reward_function_written_for_trl_on_messages_runs_as_it_is(tmp_path: Path) -> None:
    body = "def score(prompts, completions, **kwargs):\n    return [len(c[0]['content']) + len(p) for p, c in zip(prompts, completions)]"
    assert measured(tmp_path, body, format="conversational").values.to_list() == [8, 2, 25, 6]


FRAIL = "def score(completions, **_):\n    return [1 / len(text) for text in completions]\n"


def test_a_row_that_it_fails_on_is_told_by_line_and_the_others_count(tmp_path: Path) -> None:
    one = measured(tmp_path, FRAIL)
    assert one.values.to_list() == pytest.approx([1 / 6, None, 1 / 23, 1 / 4])
    assert (
        list(one.faults) == [1]
        and "ZeroDivisionError: division by zero" in one.faults[1]
        and ".py:2: " in one.faults[1]
    )
    with pytest.raises(UserError, match=r"raised for this answer.*ZeroDivisionError.*'' \(row 1\)"):
        Scorer(
            None, {"mine": PythonRule(python=f"{next(tmp_path.glob('*.py')).name}:score")}, {}, base=str(tmp_path)
        ).score(rollouts())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def score(completions): return [1.0]", "gave 1 values for 4 answers"),
        ("def score(completions): return 3", r"gave 3 \(int\); expected a list"),
        ("def score(completions): raise RuntimeError('no')", r"raised for all 4 answers: .*\.py:1: RuntimeError: no"),
        ("def score(completions): raise SystemExit(3)", "raised for all 4 answers: .*SystemExit: 3"),
        (
            "def score(completions): return [1 / (4 - len(completions))] * len(completions)",
            "together, and for none of them alone",
        ),
        (
            "def score(texts): return [1] * len(texts)",
            "needs an argument `texts`.*It is called with prompts, completions",
        ),
        ("def score(completion): return [1]", "needs an argument `completion`. Did you mean `completions`"),
        ("def score(): return []", "takes none of the arguments"),
        ("async def score(completions): return []", "is an `async` function"),
        ("score = 3", "is a int"),
        ("def scores(completions): return []", "has no `score`. Did you mean `scores`"),
        ("import not_there_at_all", "can't be imported: .*No module named 'not_there_at_all'"),
        ("def score(:", r"can't be imported: .*\.py:1: SyntaxError"),
        ("raise SystemExit('bye')", "can't be imported: .*bye"),
    ],
)
def test_what_is_wrong_with_it_is_told_in_words(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        measured(tmp_path, body)


@pytest.mark.parametrize("bad", ["float('nan')", "float('inf')", "'good'", "[1]", "10 ** 400", "1j"])
def test_a_value_that_is_no_number_is_that_rows_fault(tmp_path: Path, bad: str) -> None:
    one = measured(tmp_path, f"def score(completions): return [1, {bad}, None, True]")
    assert one.values.to_list() == [1, None, None, 1] and list(one.faults) == [1]
    assert "expected a number, or None" in one.faults[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe with a package beside it, among files whose names are also ours, Python's and a library's."""
    home = tmp_path / "home"
    (home / "mypkg").mkdir(parents=True)
    (home / "mypkg" / "__init__.py").write_text("")
    (home / "mypkg" / "rewards.py").write_text("from mypkg.words import count\nimport lists\n\ndef score(completions, **kwargs):\n"
                                               "    return [count(c) + lists.MORE for c in completions]\n")  # fmt: skip
    (home / "mypkg" / "words.py").write_text("import tokenize\n\ndef count(text): return len(text.split())\n")
    (home / "lists.py").write_text("MORE = 10\n")
    for trap in ("engine/__init__.py", "tokenize.py", "json.py", "polars.py", "unused.py"):
        (home / trap).parent.mkdir(exist_ok=True)
        (home / trap).write_text("raise SystemExit('this was nobody\\'s to import')\n")
    row = {"prompt": "Capital of France?", "completion": "It is Paris", "reference": "Paris"}
    (home / "answers.jsonl").write_text("\n".join(json.dumps({**row, "prompt": f"{i}?"}) for i in range(3)))
    (home / "mine.yaml").write_text("stages:\n  scores:\n    kind: judge\n    from: ./answers.jsonl\n"
                                    "    rules: {mine: {python: 'mypkg.rewards:score'}}\n")  # fmt: skip
    return home


def test_a_run_takes_the_package_beside_the_recipe_and_nothing_else_that_lies_there(folder: Path) -> None:
    program = "import sys; sys.argv[0] = 'flywheel'; from engine.cli import main; main()"
    command = [sys.executable, "-P", "-c", program, "run", "mine.yaml", "--store", "store"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Store(str(folder / "store")).find("mine/scores").to_table()["value"].to_pylist() == [13.0] * 3


def test_its_code_is_in_the_key_and_the_plan_says_which(folder: Path) -> None:
    def planned() -> Any:
        return make_plan(load_recipe(folder / "mine.yaml"), Store(str(folder / "store")))[-1]

    first = planned()
    assert list(first.identity["sources"]) == ["lists.py", "mypkg/__init__.py", "mypkg/rewards.py", "mypkg/words.py"]
    (folder / "unused.py").write_text("# no part of it\n")
    assert planned().key == first.key
    (folder / "lists.py").write_text("MORE = 11\n")
    assert planned().key != first.key
    said: list[str] = []
    first.step.config.check(Preflight(base=folder, say=said.append))
    assert len(said) == 1 and said[0].startswith("python: mypkg.rewards:score (digest ")


def test_two_files_of_one_name_are_two_and_packages_without_a_marker_are_packages(tmp_path: Path) -> None:
    targets = {"a/rewards.py:score": 1, "b/rewards.py:score": 2, "c.deep.rewards:score": 3, "d/in/rewards.py:score": 44}
    for place, value in (("a", "1"), ("b", "2"), ("c/deep", "3"), ("d/in", "FOUR + d.FORTY")):
        (tmp_path / place).mkdir(parents=True)
        imports = "import d\nfrom .four import FOUR\n" if place == "d/in" else ""
        body = f"{imports}def score(completions): return [{value}] * len(completions)\n"
        (tmp_path / place / "rewards.py").write_text(body)
    (tmp_path / "d" / "__init__.py").write_text("FORTY = 40\n")
    (tmp_path / "d" / "in" / "__init__.py").write_text("")
    (tmp_path / "d" / "in" / "four.py").write_text("FOUR = 4\n")
    rules = {str(value): PythonRule(python=target) for target, value in targets.items()}
    for name, rule in rules.items():
        assert values(rule, frame(rollouts()), name, str(tmp_path)).values.to_list() == [float(name)] * 4
    assert list(sources(rules.values(), str(tmp_path))) == [
        "a/rewards.py", "b/rewards.py", "c/deep/rewards.py", "d/__init__.py", "d/in/__init__.py", "d/in/four.py", "d/in/rewards.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mypkg.reward:score", r"the package .*mypkg has no module `mypkg.reward`. Did you mean `mypkg.rewards`"),
        ("mypgk.rewards:score", "there is no module `mypgk.rewards`, neither in .* nor installed"),
        ("mypkg/reward.py:score", "there is no file .*reward.py. Did you mean `rewards.py`"),
        ("mypkg.rewards:scor", "has no `scor`. Did you mean `score`"),
        ("engine:score", "`engine` is a package of Flywheel's own. Give yours another name"),
        ("json:dumps", "`json` is a module of Python's own. Give yours another name"),
        ("polars:len", "`polars` is both .* and .*, which is installed"),
    ],
)
def test_a_function_that_is_not_there_is_refused_by_the_plan(folder: Path, target: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        reward_function.check([PythonRule(python=target)], Preflight(base=folder, say=lambda line: None))


def test_a_function_is_tried_without_being_run_and_what_it_prints_is_its_own(folder: Path, capfd: Any) -> None:
    (folder / "loud.py").write_text("print('imported')\ndef score(completions): raise SystemExit('run')\n")
    reward_function.check([PythonRule(python="loud.py:score")], Preflight(base=folder, say=lambda line: None))
    assert capfd.readouterr().out == ""


def test_one_that_is_installed_is_found_too(tmp_path: Path) -> None:
    rows = pl.DataFrame(frame(rollouts()))
    with pytest.raises(
        UserError, match=r"`generators.rules.mathematics.numbers:agrees` needs an argument `completion`"
    ):
        measure(PythonRule(python="generators.rules.mathematics.numbers:agrees"), rows, "mine", str(tmp_path))


@pytest.mark.parametrize("stage", [Judge, Grpo, Ppo])
def test_it_may_stand_wherever_a_rule_may(stage: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(completions): return [1] * len(completions)\n")
    made = stage.model_validate({"rules": {"mine": {"python": "mine.py:score"}}})
    assert list(made.sources(str(tmp_path))) == ["mine.py"]
    assert stage.model_validate(made.model_dump(mode="json")) == made
    checks = Evaluate.model_validate(
        {"checks": {"mine": {"python": "mine.py:score"}}, "utility": {"python": "mine.py:score"}}
    )
    assert list(checks.sources(str(tmp_path))) == ["mine.py"]
    for wrong in ("mine", "mine.py:", ":score", "a b:c d"):
        with pytest.raises(ValidationError):
            stage.model_validate({"rules": {"mine": {"python": wrong}}})


@pytest.mark.parametrize("rule", ["len(completion)", "txt NOT LIKE 'x'", "mypkg:reward", "completion", "length AND"])
@pytest.mark.parametrize("stage", [Judge, Grpo, Ppo])
def test_an_expression_that_does_not_fit_is_refused_when_the_recipe_is_read(stage: Any, rule: str) -> None:
    with pytest.raises(ValidationError, match=r"names a column|is not an expression|gives String"):
        stage.model_validate({"rules": {"mine": rule}})


def test_the_recipe_names_the_line_of_a_wrong_rule(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "stages:\n  g:\n    kind: judge\n    from: ./a.jsonl\n    rules:\n      long: length\n      short: lenght < 5\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert str(caught.value) == (
        f"{file}:7: stage `g`: `rules.short`: this rule: `lenght < 5` names a column that is not there: lenght. Did you mean `length`? "
        "Columns: completion, reference, prompt, length, finish_reason."
    )


def test_judge_rejects_the_row_that_the_function_failed_on(given: Any, build: Any, tmp_path: Path) -> None:
    (tmp_path / "frail.py").write_text(FRAIL)
    rows = [{"id": f"{i:032x}", "prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": text}],
             "model": "m"} for i, text in enumerate(ANSWERS)]  # fmt: skip
    rules = {"mine": {"python": "frail.py:score"}, "length": "LENGTH(completion)"}
    made = build(Judge, {"candidates": given("Candidate", rows)}, rules=rules, base=str(tmp_path))
    assert sorted(made.to_table()["metric"].to_pylist()) == ["length"] * 4 + ["mine"] * 3
    (rejected,) = made.rejected().to_pylist()
    assert (rejected["reason"], rejected["subject"], rejected["metric"]) == ("rule_failed", f"{1:032x}", "mine")
    assert "ZeroDivisionError" in rejected["detail"]
