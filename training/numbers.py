"""Numbers as people write them: the verifiable reward of arithmetic word problems (GSM8K, Cobbe et al. 2021).

`$1,234.50`, `1/2`, `25%`, `-3`, `1 1/2` and `.5` are read; what stands around them is not. Two numbers are equal when
they are, as fractions: no rounding.
"""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−+]?)\s?[$€£]?\s?"
    r"(?:(?P<whole>\d+)\s+(?P<part>\d+)/(?P<of>\d+)"  # 1 1/2
    r"|(?P<top>\d+(?:,\d{3})*)/(?P<bottom>\d+)"  # 1/2
    r"|(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+))"
)
MARKER = re.compile(r"####\s*(?P<answer>.+)|\\boxed\{(?P<boxed>[^{}]+)\}")


def parse(text: str) -> Fraction | None:
    """The last number in a text, as an exact fraction; None if there is none. A percent sign is left aside."""
    found = [value for match in NUMBER.finditer(text) if (value := _value(match)) is not None]
    return found[-1] if found else None


def final(text: str) -> Fraction | None:
    """The answer of a worked solution: after its last `####` or in its last `\\boxed{}`, else its last number."""
    marked = list(MARKER.finditer(text))
    if marked:
        return parse(marked[-1]["answer"] or marked[-1]["boxed"])
    return parse(text)


def agrees(completion: str, reference: str) -> bool:
    """Whether both end in the same number. False where one has none."""
    ours, theirs = final(completion), final(reference)
    return ours is not None and ours == theirs


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if match["sign"] in ("-", "−") else 1
    try:
        if match["whole"]:
            return sign * (int(match["whole"]) + Fraction(int(match["part"]), int(match["of"])))
        if match["top"]:
            return sign * Fraction(int(match["top"].replace(",", "")), int(match["bottom"]))
        return sign * Fraction(match["digits"].replace(",", ""))
    except ZeroDivisionError:
        return None
