"""Verifiable rewards: what passes, what does not, and that code in an answer stays within its limits."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from engine.errors import UserError
from generators.instructions.stage import Instructions
from generators.judge.stage import Judge
from generators.rules.answer_columns import COLUMNS
from generators.rules.rule import Rule
from generators.rules.verify import code_of, measure, passes
from training.evaluate.stage import Evaluate
from training.rl.grpo_stage import Grpo
from training.rl.ppo.stage import Ppo

RULE: TypeAdapter[Any] = TypeAdapter(Rule)


def rows(completion: str | list[str], reference: str | None = None) -> pl.DataFrame:
    texts = [completion] if isinstance(completion, str) else completion
    count = len(texts)
    return pl.DataFrame(
        {
            "completion": texts,
            "reference": [reference] * count,
            "prompt": ["?"] * count,
            "length": [1] * count,
            "finish_reason": ["stop"] * count,
        },
        schema=COLUMNS,
    )


def value(rule: Any, completion: str, reference: str | None = None) -> float:
    return float(measure(RULE.validate_python(rule), rows(completion, reference), "r")[0])


ADD = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
FENCED = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."


@pytest.mark.parametrize(
    ("rule", "completion", "reference", "expected"),
    [
        ({"kind": "number"}, "That makes $1,234.50.", "#### 1234.5", 1),
        ({"kind": "number"}, "I don't know.", "18", 0),
        ({"kind": "number", "tolerance": 0.01}, "about 3.14", "3.14159", 1),
        ({"kind": "mathematics"}, r"So \boxed{\frac{2}{\sqrt{2}}}.", r"\sqrt{2}", 1),
        ({"kind": "mathematics"}, r"So \boxed{2}.", r"\sqrt{2}", 0),
        ({"kind": "exact"}, " Paris\n", "paris", 1),
        ({"kind": "exact", "ignore_case": False}, "Paris", "paris", 0),
        ({"kind": "exact"}, "Paris, France", "Paris", 0),
        ({"kind": "regex", "pattern": r"Answer: (?P<answer>\w+)"}, "Answer: x. Answer: Rome", "rome", 1),
        ({"kind": "regex", "pattern": r"Answer: (?P<answer>\w+)"}, "Answer: Rome. Answer: x", "Rome", 0),
        ({"kind": "regex", "pattern": r"^\d+$"}, "42", None, 1),
        ({"kind": "regex", "pattern": r"^\d+$"}, "forty", None, 0),
        ({"kind": "tests"}, FENCED, ADD, 1),
        ({"kind": "tests"}, "def add(a, b): return a - b", ADD, 0),
        ({"kind": "tests"}, "this is no code", ADD, 0),
        ("completion = reference", "a", "a", 1),
    ],
)
def test_what_passes_and_what_does_not(rule: Any, completion: str, reference: str | None, expected: int) -> None:
    assert value(rule, completion, reference) == expected


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I cannot assist with that request.", True),
        ("I cannot provide instructions for building a weapon.", True),
        ("As an AI, I am unable to do this.", True),
        ("I must respectfully decline.", True),
        ("I won't help you hurt someone.", True),
        ("The capital of France is Paris.", False),
        ("I'm sorry to hear that. Here are three things that help.", False),
        ("I can't recommend this book enough!", False),
        ("You cannot divide by zero; here is why.", False),
    ],
)
def test_refusals_are_told_from_answers(text: str, refuses: bool) -> None:
    assert value({"kind": "refusal"}, text) == float(refuses)
    assert value({"kind": "refusal", "expect": "answer"}, text) == float(not refuses)
    by_reference = {"kind": "refusal", "expect": "reference"}
    assert value(by_reference, text, "refuse") == float(refuses)
    assert value(by_reference, text, "answer") == float(not refuses)


def test_code_stays_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_SECRET", "hush")
    started = time.monotonic()
    endless, greedy = "while True: pass", "x = bytearray(1 << 30)"
    leaves_early, exits = "import sys; sys.exit(0)", "import os; os._exit(0)"
    prints = "print('passed'); raise SystemExit"
    writes = "open('big', 'wb').write(b'0' * (8 << 20))"
    secret = "import os; assert 'FLYWHEEL_SECRET' not in os.environ and os.listdir('.') == []"
    forks = "import os, time\nif os.fork() == 0: time.sleep(60)"
    assert not passes(endless, "", 0.5, 256)
    for source in (greedy, leaves_early, exits, prints, writes):
        assert not passes(source, "assert True", 5, 256), source
    calls = "import socket; socket.create_connection(('127.0.0.1', 9))"
    assert passes(secret, "", 5, 256) and not passes(forks, "", 1, 256) and not passes(calls, "", 1, 256)
    assert time.monotonic() - started < 20


def test_a_test_can_not_be_passed_by_swallowing_what_comes_after() -> None:
    assert not passes("import atexit, os\natexit.register(lambda: os._exit(0))", "assert False", 5, 256)
    assert not passes("import os\nos.write(1, b'0' * 32)", "assert False", 5, 256)


def test_fenced_code_is_taken_out_of_what_is_said_around_it() -> None:
    assert code_of(FENCED) == "def add(a, b):\n    return a + b\n"
    assert code_of("```\nx = 1\n```\nand\n```py\ny = 2\n```") == "x = 1\n\ny = 2\n"
    assert code_of("x = 1") == "x = 1"


def test_rows_without_a_reference_count_0_and_none_at_all_is_an_error() -> None:
    two = pl.concat([rows("4", "4"), rows("4", None)])
    for kind in ("number", "mathematics", "exact"):
        assert measure(RULE.validate_python({"kind": kind}), two, "r").tolist() == [1, 0]
    for kind in ("number", "mathematics", "exact", "tests"):
        with pytest.raises(UserError, match=rf"rule `r` \({kind}\) compares answers with `reference`, and no prompt"):
            measure(RULE.validate_python({"kind": kind}), rows("4"), "r")
    with pytest.raises(UserError, match="expected by the reference `refuse` or `answer`, found `no`"):
        value({"kind": "refusal", "expect": "reference"}, "x", "no")


def test_a_wrong_rule_is_refused_in_our_own_words() -> None:
    with pytest.raises(ValidationError, match="expected an expression, or a mapping with `kind`: number, mathematics"):
        RULE.validate_python({"kind": "nubmer"})
    with pytest.raises(ValidationError, match="this is no regular expression"):
        RULE.validate_python({"kind": "regex", "pattern": "("})
    with pytest.raises(ValidationError, match="Extra inputs"):
        RULE.validate_python({"kind": "exact", "tolerance": 1})


def test_a_configuration_is_read_without_what_measures() -> None:
    heavy = {"polars", "numpy", "numba", "sympy", "math_verify", "torch"}
    program = f"import sys, generators.rules.rule; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("kind", "field", "rule", "counts"),
    [
        (Evaluate, "checks", {"kind": "number"}, True),
        (Evaluate, "checks", {"kind": "mathematics"}, True),
        (Evaluate, "checks", {"kind": "exact"}, False),
        (Evaluate, "checks", {"kind": "tests"}, False),
        (Evaluate, "checks", "completion = reference", False),
        (Ppo, "rules", {"kind": "number"}, True),
        (Ppo, "gold", {"kind": "number"}, True),
        (Ppo, "rules", "length < 20", False),
        (Grpo, "rules", {"kind": "number"}, True),
        (Grpo, "rules", "length < 20", False),
    ],
)
def test_how_answers_are_compared_is_identity_where_they_are(kind: Any, field: str, rule: Any, counts: bool) -> None:
    assert ("equality" in kind.model_validate({field: {"r": rule}}).identity()) is counts


def test_how_answers_are_compared_is_identity_of_what_is_generated_by_it() -> None:
    assert "equality" in Judge(verifiers=["code", "mathematics"]).identity()
    assert "equality" not in Judge(verifiers=["code", "json"]).identity()
    for name, counts in (("mathematics", True), ("magpie", False)):
        assert ("equality" in Instructions.model_validate({"method": {"name": name}}).identity()) is counts
