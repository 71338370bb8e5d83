"""Verifiers agree with what a person would say of these answers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from generators.verifiers import final_answer, number, same_number, verify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"So \boxed{\frac{3}{4}} it is", r"\frac{3}{4}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        ("She has 3 + 4 = 7.\n#### 1,234", "1,234"),
        ("The answer is 42.", "42"),
        ("nothing", None),
        (r"\boxed{}", None),
    ],
)
def test_what_a_solution_ends_in(text: str, value: str | None) -> None:
    assert final_answer(text) == value


def test_numbers_as_people_write_them() -> None:
    assert number("$1,200.50") == Fraction(2401, 2) and number(r"\frac{3}{4}") == Fraction(3, 4)
    assert number("3/4") == Fraction(3, 4) and number("1/0") is None and number("x") is None
    assert same_number("0.3", str(0.1 + 0.2)) and not same_number("1000", "1001") and same_number("75 %", "75")
    assert same_number("Paris", "paris.") and not same_number("Paris", "1")


def test_verdicts() -> None:
    assert verify("mathematics", ["so 7", "so 8", "?"], ["2 + 5 = 7 #### 7", "7", None]) == [1.0, 0.0, None]
    answers = ["```python\ndef f(): return 1\n```", "def f(): return 2", "Sure: ```py\ndef f(): return 1", "x"]
    tests = ["assert f() == 1", "assert f() == 1", "assert f() == 1", None]
    assert verify("code", answers, tests) == [1.0, 0.0, 1.0, None]
    assert verify("json", ['{"a": 1}', "a"], [None, None]) == [1.0, 0.0]
