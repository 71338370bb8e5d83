"""Numbers as people write them: the verifiable reward of arithmetic word problems (GSM8K, Cobbe et al. 2021).

`$1,234.50`, `1/2`, `\\frac{1}{2}`, `25%`, `-3`, `1 1/2` and `.5` are read; what stands around them is not. Two numbers
are equal when they are, as fractions: no rounding. `25%` is both 25 and 1/4: it equals either.
"""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−+]?)\s?(?:\\?[$€£]\s?(?P<after>[-−]?)\s?)?"
    r"(?:\\[dt]?frac\{(?P<over>\d+)\}\{(?P<under>\d+)\}"  # \frac{1}{2}
    r"|(?P<whole>\d+)\s+(?P<part>\d+)/(?P<of>\d+)"  # 1 1/2
    r"|(?P<top>\d+(?:,\d{3})*)/(?P<bottom>\d+)"  # 1/2
    r"|(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+))"
    r"(?!\d|\.\d)(?P<percent>\s?\\?%|\s?percent\b)?"
)
MARKER = re.compile(r"####\s*(?P<answer>.+)|\\boxed\{(?P<boxed>(?:[^{}]|\{[^{}]*\})+)\}")


def parse(text: str) -> Fraction | None:
    """The last number in a text, as an exact fraction; None if there is none. A percent sign is left aside."""
    found = _last(text)
    return found[0] if found else None


def final(text: str) -> Fraction | None:
    """The answer of a worked solution: after its last `####` or in its last `\\boxed{}`, else its last number."""
    return parse(_answer(text))


def agrees(completion: str, reference: str, tolerance: float = 0.0) -> bool:
    """Whether both end in the same number. False where one has none.

    Args:
        tolerance: relative error that is allowed.
    """
    ours, theirs = _last(_answer(completion)), _last(_answer(reference))
    if ours is None or theirs is None:
        return False
    return any(
        a == b or (tolerance and abs(a - b) <= tolerance * abs(b)) for a in _readings(ours) for b in _readings(theirs)
    )


def _answer(text: str) -> str:
    marked = list(MARKER.finditer(text))
    return marked[-1]["answer"] or marked[-1]["boxed"] if marked else text


def _last(text: str) -> tuple[Fraction, bool] | None:
    """The last number in a text and whether it is a percentage."""
    found = [(v, bool(match["percent"])) for match in NUMBER.finditer(text) if (v := _value(match)) is not None]
    return found[-1] if found else None


def _readings(number: tuple[Fraction, bool]) -> tuple[Fraction, ...]:
    value, percent = number
    return (value, value / 100) if percent else (value,)


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if (match["sign"] in ("-", "−")) != (match["after"] in ("-", "−")) else 1
    try:
        if match["over"]:
            return sign * Fraction(int(match["over"]), int(match["under"]))
        if match["whole"]:
            return sign * (int(match["whole"]) + Fraction(int(match["part"]), int(match["of"])))
        if match["top"]:
            return sign * Fraction(int(match["top"].replace(",", "")), int(match["bottom"]))
        return sign * Fraction(match["digits"].replace(",", ""))
    except ZeroDivisionError:
        return None
