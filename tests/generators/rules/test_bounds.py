"""What models write is judged in bounded time and memory, and raises nothing, whatever it is."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from generators.rules.bounded_process import BoundedProcess
from generators.rules.mathematics import equality, numbers
from generators.rules.mathematics.equality import _formulas, is_right  # pyright: ignore[reportPrivateUsage]
from generators.rules.rule import Rule
from generators.rules.verify import check, code_of, verify

RULE: TypeAdapter[Any] = TypeAdapter(Rule)
SIZE = 100_000
UNITS = [
    "9",
    "1,",
    "1 ",
    "1/",
    "{",
    "(",
    "$",
    "$$",
    "\\(",
    "\\[",
    "\\boxed{",
    "####",
    "#### ",
    "a",
    "\\{",
    "\\frac{",
    "^{",
    "\u0660",
]
# The pattern that formulas were found by before, quadratic in what is opened and not closed: the truth to compare with.
FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\\d])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this process and of those that it has waited for."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    work()
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "text", [*(unit * (SIZE // len(unit)) for unit in UNITS), "\\boxed{" * 12_000 + "1" + "}" * 12_000], ids=repr
)
def test_long_texts_cost_seconds_at_most(text: str) -> None:
    def work() -> None:
        assert numbers.agrees(text, "7") in (True, False) and numbers.agrees("7", text) in (True, False)
        assert is_right(text, "7") in (True, False) and is_right("\\boxed{7}", text) in (True, False)
        assert code_of(text) and verify("json", [text], [None]) in ([0.0], [1.0])

    assert cpu(work) < 10


@pytest.mark.parametrize("bomb", ["9**9**9**9", "(10^9)!", "9" * 5_000])
def test_an_expression_that_explodes_is_not_equal(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = BoundedProcess("generators.rules.mathematics.symbolic_equality", cpu_s=0.5)
    monkeypatch.setattr(equality, "SOLVER", solver)
    assert not is_right(f"\\boxed{{{bomb}}}", "7")
    assert is_right(f"\\boxed{{{bomb}}}", bomb)
    solver.close()


def test_a_pattern_that_tries_for_ever_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = BoundedProcess("generators.rules.pattern_search", cpu_s=0.3)
    monkeypatch.setattr("generators.rules.verify.MATCHER", matcher)
    rule = RULE.validate_python({"kind": "regex", "pattern": "(a+)+$"})
    assert not check(rule, "a" * 60 + "b", "") and check(rule, "aaa", "")
    matcher.close()


@given(
    st.lists(st.sampled_from(["$", "$$", "\\(", "\\)", "\\[", "\\]", "a", "1", " ", "\n", "\\"]), max_size=14).map(
        "".join
    )
)
@settings(max_examples=500, deadline=None)
def test_formulas_are_those_of_the_pattern(text: str) -> None:
    truth = [(next(g for g in m.groups() if g is not None), m.end()) for m in FORMULA.finditer(text)]
    assert _formulas(text) == truth


def test_numbers_of_any_length() -> None:
    long = "7" * 5_000
    assert not numbers.agrees(long, "7") and not numbers.agrees("7", long) and numbers.exact(long) is None
    assert verify("json", [long, "[" * 100_000, '{"a": 1'], [None] * 3) == [1.0, 0.0, 0.0]
    assert is_right(f"\\boxed{{{long}}}", long) and not is_right(f"\\boxed{{{long}}}", long + "1")
