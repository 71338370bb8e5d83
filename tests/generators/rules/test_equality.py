r"""`\boxed{x}` is right for every x, and wrong for every other: the truth is how each answer was built, not a library's."""

from __future__ import annotations

import os
import re
import threading
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from generators.rules.bounded_process import BoundedProcess
from generators.rules.mathematics import equality
from generators.rules.mathematics.equality import equal, final_answer
from generators.rules.verify import verify


def right(completion: str, reference: str) -> bool:
    return verify("mathematics", [completion], [reference]) == [1.0]


# -- answers, each with what it is -----------------------------------------------------------------------------------------

small = st.integers(-12, 12)


@st.composite
def numbers(draw: Any) -> tuple[Any, str]:
    value = Fraction(draw(st.integers(-3000, 3000)), draw(st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8])))
    sign, size = "-" if value < 0 else "", abs(value)
    ways = [f"{sign}{size}", f"{sign}\\frac{{{size.numerator}}}{{{size.denominator}}}", f"${sign}{size}$"]
    if 1000 % size.denominator == 0:
        ways += [f"{sign}{float(size):,.3f}", f"{sign}{float(size):.4f}", f"{sign}\\${float(size):,.3f}"]
    if size.denominator > 1 and size > 1:
        ways.append(f"{sign}{int(size)}\\frac{{{size.numerator % size.denominator}}}{{{size.denominator}}}")
    return value, draw(st.sampled_from(ways))


@st.composite
def radicals(draw: Any) -> tuple[Any, str]:
    """a + b sqrt(c), unlike for unlike a, b, c: c is free of squares."""
    a, b, c = draw(small), draw(small.filter(bool)), draw(st.sampled_from([2, 3, 5, 6]))
    ways = [f"{a}{b:+}\\sqrt{{{c}}}", f"{b}\\sqrt{{{c}}}{a:+}", f"{a} + \\frac{{{b * c}}}{{\\sqrt{{{c}}}}}"]
    return (a, b, c), draw(st.sampled_from(ways))


@st.composite
def polynomials(draw: Any) -> tuple[Any, str]:
    a, b, c = draw(small.filter(bool)), draw(small), draw(small)
    name = draw(st.sampled_from(["x", "X", "y"]))
    ways = [f"{a}{name}^2{b:+}{name}{c:+}", f"{c}{b:+}{name}{a:+}{name}^{{2}}", f"({a}{name}{b:+}){name}{c:+}"]
    return (name, a, b, c), draw(st.sampled_from(ways))


@st.composite
def collections(draw: Any) -> tuple[Any, str]:
    left, right = draw(st.sampled_from([("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), (r"\{", r"\}"), ("", "")]))
    members = draw(st.lists(numbers(), min_size=2, max_size=3, unique_by=lambda member: member[0]))
    values: Any = tuple(value for value, _ in members)
    if left in ("", r"\{"):
        members, values, kind = draw(st.permutations(members)), frozenset(values), "set"
    else:
        kind = left + right
    written = ", ".join(text.strip("$").replace(",", "") for _, text in members)
    return (kind, values), draw(st.sampled_from([f"{left}{written}{right}", f"${left} {written} {right}$"]))


words = st.sampled_from(["Paris", "Rome", "no solution", "north-west", "\\text{even}", "odd", "A", "B"]).map(
    lambda text: (text, text)
)
answers = st.one_of(numbers(), radicals(), polynomials(), collections(), words)


@settings(max_examples=300, deadline=None)
@given(st.one_of(answers.map(lambda answer: answer[1]), st.text(min_size=1).filter(str.strip)))
@example(" {")
@example(".")
def test_a_boxed_answer_is_right_for_itself(text: str) -> None:
    assert right(f"So it is \\boxed{{{text}}}.", text)
    if not re.search(r"[\\{}#]", text):
        assert right(f"So it is \\boxed{{{text}}}.", f"As 1 + 1 = 2, \\boxed{{{text}}}")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.tuples(numbers(), numbers()), st.tuples(collections(), collections())), st.data())
def test_numbers_and_collections_are_equal_if_their_values_are(pair: Any, data: Any) -> None:
    (value, text), (other, its) = pair
    assert right(f"\\boxed{{{text}}}", its) == (value == other)


@settings(max_examples=60, deadline=None)
@given(numbers(), st.integers(1, 5))
def test_two_ways_to_write_a_number(number: Any, factor: int) -> None:
    value, text = number
    assert right(f"\\boxed{{{text}}}", f"{value.numerator * factor}/{value.denominator * factor}")
    assert not right(f"\\boxed{{{text}}}", f"{value.numerator * factor + 1}/{value.denominator * factor}")


@settings(max_examples=40, deadline=None)
@given(st.one_of(*(st.tuples(one, one) for one in (radicals(), polynomials())), st.tuples(answers, answers)))
def test_expressions_are_equal_if_they_were_built_equal(pair: Any) -> None:
    (value, text), (other, its) = pair
    assert right(f"\\boxed{{{text}}}", its) == (value == other), (text, its)


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("2", r"\sqrt{2}", False), ("1", "x^2+1", False), (r"\sqrt{2}", r"$\sqrt{2}$", True), ("(1,2)", "(1,2)", True),
        ("25 %", "0.25", True), (r"25\%", "25", True), ("25", "0.25", False), (r"25\%", r"2500\%", False),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True), ("(x+1)^2", "x^2+2x+1", True), ("x=5", "5", True),
        ("(1,2)", "(2,1)", False), ("(1,2)", "[1,2]", False), ("(2,1)", "(3,1)", False), ("1,2", "(1,2)", False),
        (r"\{2,1\}", r"\{1,2\}", True), ("2, 1", "1, 2", True), (r"\pm 2", "2, -2", True),
        (r"(2,\infty)\cup(-\infty,1)", r"(-\infty,1)\cup(2,\infty)", True),
        (r"(-\infty,1]\cup(2,\infty)", r"(-\infty,1)\cup(2,\infty)", False), (r"(1,\frac{2}{\sqrt{2}})", r"(1,\sqrt{2})", True),
        ("X", "x", False), ("cat", "act", False), ("12_3", "12_4", False), ("2 3", "5", False), ("5m", "5", False),
        (r"3\text{ cm}", "3", True), (r"3\text{ cm}", r"3\text{ m}", False), (r"3\text{ million}", "3", False),
        (r"30^\circ", "30", True), ("x>2", "2<x", True), ("x>2", r"x\ge 2", False), ("1<x<2", "(1,2)", True),
        ("x^2=4", "2x^2=8", True), ("x^2=-1", "x^2=-2", False), ("0.0000001x", "0.0000002x", False),
        (r"\sqrt{2}+10^{-20}", r"\sqrt{2}", False), ("0.3333333333", r"\frac{1}{3}", False), ("paris", r"\text{Paris}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\3\end{bmatrix}", False),
        (r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}", r"\begin{bmatrix}1&2\\[4pt]3&4\end{bmatrix}", True),
        # as it is typed
        ("3√5", r"\sqrt{45}", True), ("2*sqrt(3)", r"\sqrt{12}", True), ("∛16", r"2\sqrt[3]{2}", True), ("x**2", "x^2", True),
        ("x²+1", "x^2+1", True), ("2½", r"\frac52", True), ("（1，2）", "(1,2)", True), ("２０％", "20%", True), ("{2,1}", r"\{1,2\}", True),
        ("8\\,605", "8605", True), ("1,000, 2,000", "2000, 1000", True), (r"0.\overline{3}", r"\frac13", True),
        (r"0.1\overline{6}", r"\frac16", True), (r"0.\overline{3}", "0.3", False), (r"{6 \choose 2}", "15", True), ("2 million", "2000000", True),
        (r"\sqrt[3]{-8}", "-2", True), (r"\log_2 8", "3", True), ("1011_2", "1011_{2}", True), ("1011_2", "1011_3", False),
        # collections and their names
        (r"\big(1, 2\big)", "(1,2)", True), ("(x, y) = (1, 2)", "(1,2)", True), ("(x, y) = (1, 2)", "(2,1)", False),
        ("x=1, y=2", "(1,2)", True), ("y=2, x=1", "(1,2)", True), ("x=2, y=1", "(1,2)", False), ("x=1, x=2", "(1,2)", False),
        (r"x \in [1,2]", "[1,2]", True), (r"x \in [1,2]", r"y \in [1,2]", False), (r"x\in[5,\infty)", r"x \ge 5", True),
        (r"x<-6 \text{ or } x>-1", r"(-\infty,-6)\cup(-1,\infty)", True), (r"x<-6 \text{ or } x>-1", r"(-\infty,-6]\cup(-1,\infty)", False),
        (r"\{x : x>2\}", r"(2,\infty)", True), ("]0,1]", "(0,1]", True), ("]0,1[", "[0,1]", False), (r"\langle 1,2\rangle", r"\langle 1, 3\rangle", False),
        (r"\frac{6\pm 2\sqrt{3}}{2}", r"\{3-\sqrt{3}, 3+\sqrt{3}\}", True), (r"\pm 1, \pm 2", "1,-1,2", False),
        ("red, blue", "blue, red", True), ("red, blue", "red, green", False),
        # units
        ("5 cm", r"5\text{ cm}", True), ("5 cm", "5", True), ("5 cm", "5 m", False), ("5 m", r"5\text{ meters}", True), ("5 m", "5", False),
        ("12 square inches", r"12\text{ in}^2", True), ("12 square inches", "12 inches", False), ("9.8 m/s²", r"9.8\ \mathrm{m/s^2}", True),
        ("60 mph", r"60\text{ miles per hour}", True), (r"10\,\frac{\text{km}}{\text{h}}", r"10\text{ km/h}", True),
        (r"\$5.00", "5 dollars", True), (r"\$5", "€5", False), (r"\$5", r"5\text{ cm}", False), ("5 dollars", "5 cents", False),
        (r"45\degree", "45 degrees", True), (r"25^\circ\text{C}", r"25^\circ\text{F}", False), ("7 apples", "7 oranges", False),
        (r"2\sqrt3\text{ cm}", r"2\sqrt{3}", True), (r"2\sqrt3\text{ cm}", r"2\sqrt3\text{ m}", False), ("25 per cent", "0.25", True), ("86 percent", "0.86", True),
        (r"\frac{x^2}{x}", "x", True), (r"\frac{x^2}{x}", "x^2", False), (r"i\sqrt3", r"\sqrt{-3}", True), ("i", "1", False), ("xy", "yx", True),
        ("xy", "xz", False), ("no", "on", False), ("£5", "$5", False), ("£5", "5 pounds", True), ("5 lb", "5 pounds", True), ("5 €", "€5", True),
        ("20 degrees Celsius", r"20^\circ\text{C}", True), ("0°C", "0 K", False), (r"x\text{ is even}", "x", False), ("2 theta", "2", False), ("5 squared", "5", False), ("3 quarters", "3", False),
        ("5 less than x", "5", False), (r"5\text{ factorial}", "5", False), ("3 months", "3", True), ("2 pi", "2", False), (r"2\mathrm{e}", "2", False),
    ],
)  # fmt: skip
def test_verdicts_a_teacher_would_give(answer: str, reference: str, verdict: bool) -> None:
    assert right(f"So it is \\boxed{{{answer}}}.", reference) is verdict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"So \boxed{\frac{3}{4}} it is", r"\frac{3}{4}"), (r"first \boxed{1}, then \boxed{2}", "2"),
        ("She has 3 + 4 = 7.\n#### 1,234", "1,234"), (r"\boxed{1}, or rather" "\n#### 2", "2"), (r"#### \boxed{5}", "5"),
        (r"\boxed{\frac{\sqrt{\frac{1}{2}}}{3}}", r"\frac{\sqrt{\frac{1}{2}}}{3}"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("The answer is 42.", "42"), (r"The answer is $\sqrt{2}$.", r"\sqrt{2}"), ("It costs $5 and $6 in all.", "6."),
        (r"It is \sqrt{2}", None), ("the pair (1,2)", None), ("x^2 + 1", "x^2 + 1"), ("nothing", None), (r"\boxed{}", None),
    ],
)  # fmt: skip
def test_what_a_solution_ends_in(text: str, value: str | None) -> None:
    found = final_answer(text)
    assert (found and found.strip("$.")) == (value and value.strip("."))


def test_what_a_program_prints_may_be_rounded() -> None:
    assert equal(str(0.1 + 0.2), "0.3", 1e-9) and not equal(str(0.1 + 0.2), "0.3") and not equal("1001", "1000", 1e-9)


def test_verdicts() -> None:
    assert verify("mathematics", ["so 7", "so 8", "?"], ["2 + 5 = 7 #### 7", "7", None]) == [1.0, 0.0, None]
    texts = ["```python\ndef f(): return 1\n```", "def f(): return 2", "Sure: ```py\ndef f(): return 1", "x"]
    tests = ["assert f() == 1", "assert f() == 1", "assert f() == 1", None]
    assert verify("code", texts, tests) == [1.0, 0.0, 1.0, None]
    assert verify("json", ['{"a": 1}', "a"], [None, None]) == [1.0, 0.0]


def test_one_process_answers_many_threads_and_is_replaced_when_it_runs_out_of_time() -> None:
    solver = BoundedProcess("generators.rules.mathematics.symbolic_equality", cpu_s=0.5)
    verdicts: dict[int, bool] = {}

    def compare(n: int) -> None:
        verdicts[n] = solver.ask([f"{n}x", f"x*{n % 3}"])

    try:
        assert solver.ask(["x+1", "1+x"])
        assert not solver.ask(["10^{10^{10}}", "1"])  # arithmetic in C, which heeds no signal that Python handles
        threads = [threading.Thread(target=compare, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert verdicts == {n: n < 3 for n in range(6)}
    finally:
        solver.close()


def test_a_fork_has_no_part_in_the_process() -> None:
    assert equal("x+1", "1+x")  # it runs
    child = os.fork()
    if not child:
        os._exit(int(equality.SOLVER._process is not None))
    assert os.waitpid(child, 0)[1] == 0
    assert equal("x+2", "2+x")


def test_a_process_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start: it ended with 1"):
        BoundedProcess("generators.rules.mathematics.symbolic_equality", cpu_s=0.5).ask(["x", "y"])
