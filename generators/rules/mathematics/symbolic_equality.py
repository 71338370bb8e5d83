r"""Whether two LaTeX expressions are equal, by math-verify and SymPy: a process of its own, which `equality.py` starts.

math-verify's own limit on time is an alarm signal, which neither threads nor SymPy's arithmetic in C heed; a timer of CPU time ends
the whole process, whatever it is in. And no recipe's process pays for SymPy before an answer needs it.
"""

from __future__ import annotations

import logging
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Relational

from generators.rules.bounded_script import serve

PRECISION = 50  # digits to which numbers are compared that no simplification settles
# Units are not left out: 3 m and 3 cm differ. `equality.py` says when one may be missing.
READING = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    ),
)
FLIPPED = {
    sympy.StrictLessThan: sympy.StrictGreaterThan,
    sympy.LessThan: sympy.GreaterThan,
    sympy.StrictGreaterThan: sympy.StrictLessThan,
    sympy.GreaterThan: sympy.LessThan,
}


def read(text: str) -> Any:
    """The expression, its decimals as exact fractions; None if it is none."""
    found = parse(f"${text}$", [READING], fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not found:
        return None
    expression: Any = found[0]
    decimals = expression.atoms(sympy.Float)
    return expression.xreplace({one: sympy.Rational(str(one)) for one in decimals}) if decimals else expression


def same(text: str, other: str) -> bool:
    a, b = read(text), read(other)
    if a is None or b is None:
        return False
    if isinstance(a, Relational) and isinstance(b, Relational):
        return _same_relation(a, b)
    if verify(b, a, numeric_precision=PRECISION, allow_set_relation_comp=True, timeout_seconds=None):
        return True
    if not isinstance(a, sympy.Expr) or not isinstance(b, sympy.Expr):
        return False
    ours, theirs = ({one for one in expression.free_symbols if str(one) == "i"} for expression in (a, b))
    if bool(ours) != bool(theirs):  # math-verify reads i as a variable; beside sqrt(-3) it is none
        a, b = a.subs(dict.fromkeys(ours, sympy.I)), b.subs(dict.fromkeys(theirs, sympy.I))
    difference: Any = sympy.Add(a, sympy.Mul(-1, b))
    return sympy.simplify(difference) == 0  # also where it was read without cancelling: x^2 / x


def _same_relation(a: Any, b: Any) -> bool:
    """Whether one is a multiple of the other. math-verify compares solutions: all that have none would be equal."""
    ratio = sympy.simplify((a.lhs - a.rhs) / (b.lhs - b.rhs))
    if not ratio.is_number or not ratio.is_finite or ratio.is_zero:
        return False
    if type(a) is type(b) and type(a) not in FLIPPED:
        return True  # =, and not equal
    return bool((type(a) is type(b) and ratio.is_positive) or (FLIPPED.get(type(a)) is type(b) and ratio.is_negative))


def answer(text: str, other: str) -> bool:
    try:
        return bool(same(text, other))
    except Exception:  # SymPy's parsers and solvers raise anything at what they can't read
        return False


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    serve(answer)
