"""A right program passes its tests in another process, and what can't be asked there by value fails and says so."""

from __future__ import annotations

from functools import partial

import pytest

from generators.rules.sandbox.programs import Limits, grade, together
from tests.generators.rules.right_programs import RIGHT

ADD = "def add(a, b): return a + b"
WRONG = "def add(a, b): return a * b + 1"
UNITTEST = """
import unittest
class T(unittest.TestCase):
    def test_sums(self):
        self.assertEqual(add(1, 2), 3)
        with self.subTest("zeros"):
            self.assertEqual(add(0, 0), 0)
"""


def test_right_programs_pass() -> None:
    outcomes = together([partial(grade, *one) for one in RIGHT.values()])
    assert {name: made.detail for name, made in zip(RIGHT, outcomes, strict=True) if not made.ok} == {}


@pytest.mark.parametrize(
    ("program", "tests", "status", "says"),
    [
        (WRONG, "assert add(2, 3) == 5", "failed", "failed: AssertionError"),
        (WRONG, "assert add(2, 3) == 5, 'no'", "failed", "failed: AssertionError: no"),
        ("def f(:", "pass", "failed", "SyntaxError"),
        ("1 / 0", "pass", "failed", "ZeroDivisionError"),
        (ADD, "def f(:", "failed", "SyntaxError"),
        (ADD, "assert add(2, 3", "failed", "SyntaxError"),
        (ADD, "assert addd(2, 3) == 5", "failed", "NameError"),
        ("def f(): 1 / 0", "f()", "failed", "ZeroDivisionError: division by zero"),
        ("exit(0)", "pass", "failed", "left before its last line"),
        (ADD, "exit(0)", "failed", "the tests left before their last line"),
        ("def f():\n while True: pass", "f()", "timeout", ""),
        ("def f():\n import time; time.sleep(60)", "f()", "timeout", ""),
        (ADD, "while True: pass", "timeout", ""),
        ("def f():\n while True: yield 1", "assert list(f())", "timeout", ""),
        ("def f(): return bytearray(1 << 30)", "f()", "memory", "MemoryError"),
        ("import os\ndef f(): os._exit(0)", "f()", "failed", "ended before it answered"),
        ("import os\ndef f(): os._exit(0)", "try: f()\nexcept: pass", "failed", "ended before it answered"),
        ("def f(n): return f(n + 1)", "f(0)", "failed", "RecursionError"),
        ("def f():\n x = []\n for _ in range(100000): x = [x]\n return x", "f()", "failed", "can't be said by value"),
        ("def f(): print('ok passed ' * 9999); return 1", "assert f() == 2", "failed", "AssertionError"),
        ("def f(): return 'x' * (80 << 20)", "assert f() == 2", "failed", "can't be said by value"),
        ("class A:\n def __repr__(self): return 'x' * (80 << 20)\ndef f(): return A()", "repr(f())", "failed", "by value"),
        ("def f(): return float('nan')", "assert f() == f()", "failed", "AssertionError"),
        ("def f(): return True", "assert type(f()) is int", "failed", "AssertionError"),
        ("def f(): return -0.0", "import math\nassert math.copysign(1, f()) == 1", "failed", "AssertionError"),
        ("def f(): return 1e400", "assert f() == 10 ** 400", "failed", "AssertionError"),
        ("class A: pass", "class B(A): pass", "failed", "the tests derive `B` from a class of the program's"),
        ("class A: pass", "import copy\ncopy.copy(A())", "failed", "the tests copy or pickle an object of the program's"),
        ("class A:\n def __sub__(self, o): return 0\ndef f(): return A()", "f() - 5", "failed", "would have to say itself"),
        ("class A:\n def __eq__(self, o): return True\ndef f(): return A()", "assert f() == 5", "failed", "is equal to none)"),
        ("def sum(x): return 6", "assert sum([1, 2]) == 6", "failed", "the program defines `sum`, which is a builtin"),
        ("math = 3", "assert math.isclose(1, 1)", "failed", "the tests use the module of this name"),
    ],
)  # fmt: skip
def test_what_does_not_pass_says_why(program: str, tests: str, status: str, says: str) -> None:
    made = grade(program, tests, Limits(cpu_s=1, wall_s=1.0 if status == "timeout" else 10.0))
    assert made.status == status and says in made.detail, made


@pytest.mark.parametrize(
    "end", ["unittest.main()", "unittest.main(exit=False)", "unittest.TextTestRunner().run(T('test_sums'))"]
)
def test_unittest_is_heard_whatever_is_done_with_its_result(end: str) -> None:
    skips = "import unittest\ndef add(a, b): raise unittest.SkipTest('not today')"
    right, wrong, skipped = together([partial(grade, one, UNITTEST + end) for one in (ADD, WRONG, skips)])
    assert right.ok and not wrong.ok and not skipped.ok, (right, wrong, skipped)


def test_equal_objects_of_the_program_have_to_differ_from_others() -> None:
    tests = "assert V(1) == V(1)\nassert V(1) != V(2)"
    honest = "class V:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return isinstance(o, V) and self.x == o.x"
    always = "class V:\n    def __init__(self, x): pass\n    def __eq__(self, o): return True"
    assert grade(honest, tests).ok and not grade(always, "assert V(1) == V(1)").ok


def test_a_program_does_nothing_with_the_tests_objects_but_what_it_was_given_them_for() -> None:
    tests = """
class Box:
    def __init__(self): self.open = False; self._hidden = 41
    def look(self): return 'empty'
expected = 41
def callback(n): return n + 1
box = Box()
assert f(box, callback) == 'held'
assert box.open is True and box.look() == 'empty' and box._hidden == 41 and expected == 41
"""
    program = """
def f(box, callback):
    assert callback(1) == 2 and box.look() == 'empty'
    box.open = True
    for forbidden in (lambda: callback.__globals__, lambda: callback.__code__, lambda: box._hidden,
                      lambda: box.look.__func__, lambda: setattr(box, 'look', lambda: 'full'), lambda: setattr(box, '_hidden', 1),
                      lambda: callback.__closure__, lambda: delattr(box, 'open')):
        try:
            forbidden()
        except (AttributeError, PermissionError):
            continue
        return 'got in'
    return 'held'
"""
    made = grade(program, tests)
    assert made.ok, made


def test_grades_come_out_the_same_every_time() -> None:
    program = "import random\ndef f(): return random.random(), list({'a', 'b', 'c', 'd'})"
    said = {grade(program, "print(f())").stdout for _ in range(3)}
    assert len(said) == 1 and said != {""}
