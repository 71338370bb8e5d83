r"""Numbers as people write them: the verifiable reward of arithmetic word problems (GSM8K, Cobbe et al. 2021).

`$1,234.50`, `1{,}200`, `1/2`, `\frac{1}{2}`, `1 1/2`, `25 %`, `-3`, `.5`, `1.5e3` and `3 \times 10^8` are read. Two numbers are
equal when they are, as fractions: no rounding.

A percentage is both its number and its share: `25 %` equals `25`, and `0.25`. Two percentages are equal if their numbers are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

_GROUPS = r"\d{1,3}(?:(?:,|\{,\}|,?\\[,!])\d{3})+"  # 1,200, and LaTeX's 1{,}200, 1\,200 and 1,\!200
_FRACTION = r"\\[dtc]?frac\s*(?:\{\s*(?P<over>\d+)\s*\}\s*\{\s*(?P<under>\d+)\s*\}|(?P<digit>\d)\s*(?P<below>\d))"
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−+]?)\s?(?:\\?[$€£]\s?(?P<after>[-−]?)\s?)?"
    rf"(?:(?:(?P<mixed>\d+)\s?)?{_FRACTION}"  # \frac{1}{2}, \frac12, 1\frac{1}{2}
    r"|(?P<whole>\d+)\s+(?P<part>\d+)/(?P<of>\d+)"  # 1 1/2
    rf"|(?P<top>{_GROUPS}|\d+)/(?P<bottom>\d+)"  # 1/2
    rf"|(?P<digits>{_GROUPS}(?:\.\d+)?|\d*\.\d+|\d+)"
    r"(?:[eE](?P<e>[-+]?\d{1,3})(?!\w)|\s?(?:\\times|\\cdot|×|\*)\s?10\^(?:\{\s?(?P<power>[-−+]?\d{1,3})\s?\}|(?P<bare>-?\d{1,3})))?)"
    r"(?!\d|\.\d)(?P<percent>\s?\\?%|\s?per ?cent\b)?"
)
_MARK = re.compile(r"\\(?:boxed|fbox)\s*\{|####\s*(?P<line>.+)")


class Number(NamedTuple):
    """A number and whether it is a percentage: then `value` is what stands before the sign."""

    value: Fraction
    percent: bool

    def equals(self, other: Number, tolerance: float = 0.0) -> bool:
        """Whether the two are one number.

        Args:
            tolerance: error relative to `other` that is allowed.
        """
        pairs = [(self.value, other.value)]
        if self.percent != other.percent:
            pairs.append((self.value / 100, other.value) if self.percent else (self.value, other.value / 100))
        return any(a == b or (tolerance and abs(a - b) <= tolerance * abs(b)) for a, b in pairs)


def parse(text: str) -> Fraction | None:
    """The last number in a text, as an exact fraction; None if there is none. A percent sign is left aside."""
    found = last(text)
    return found.value if found else None


def final(text: str) -> Fraction | None:
    r"""The answer of a worked solution: after its last `####` or in its last `\boxed{}`, else its last number."""
    return parse(_answer(text))


def agrees(completion: str, reference: str, tolerance: float = 0.0) -> bool:
    """Whether both end in the same number. False where one has none.

    Args:
        tolerance: relative error that is allowed.
    """
    ours, theirs = last(_answer(completion)), last(_answer(reference))
    return ours is not None and theirs is not None and ours.equals(theirs, tolerance)


def exact(text: str) -> Number | None:
    """The number that a text is; None if it is anything more or else, or has thousands of digits."""
    match = NUMBER.fullmatch(text)
    try:
        return _number(match) if match else None
    except ValueError:
        return None


def last(text: str) -> Number | None:
    """The last number in a text; None if that has thousands of digits, which Python does not read."""
    try:
        return next((number for match in reversed(list(NUMBER.finditer(text))) if (number := _number(match))), None)
    except ValueError:
        return None


def marked(text: str) -> str | None:
    r"""What a solution marks as its answer: what its last `\boxed{}` holds or stands after its last `####`, whichever is later."""
    found = None
    for mark in _marks(text):
        found = mark
    return found


def _marks(text: str) -> Iterator[str]:
    at = 0
    while match := _MARK.search(text, at):
        if match["line"] is not None:
            at = match.end()
            yield match["line"].strip()
            continue
        depth, at = 1, match.end()
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 1  # \{ and \} are braces to read, and open and close nothing
            else:
                depth += (text[at] == "{") - (text[at] == "}")
            at += 1
        if not depth:
            yield text[match.end() : at - 1].strip()


def _answer(text: str) -> str:
    found = marked(text)
    return text if found is None else found


def _number(match: re.Match[str]) -> Number | None:
    sign = -1 if (match["sign"] in ("-", "−")) != (match["after"] in ("-", "−")) else 1
    try:
        return Number(sign * _magnitude(match), match["percent"] is not None)
    except ZeroDivisionError:
        return None


def _magnitude(match: re.Match[str]) -> Fraction:
    if match["over"] or match["digit"]:
        fraction = Fraction(int(match["over"] or match["digit"]), int(match["under"] or match["below"]))
        return int(match["mixed"] or 0) + fraction
    if match["whole"]:
        return int(match["whole"]) + Fraction(int(match["part"]), int(match["of"]))
    if match["top"]:
        return Fraction(int(re.sub(r"\D", "", match["top"])), int(match["bottom"]))
    value = Fraction(re.sub(r"[^\d.]", "", match["digits"]))
    power = match["e"] or match["power"] or match["bare"]
    return value * Fraction(10) ** int(power.replace("−", "-")) if power else value
