"""Verifiers: is an answer right, found out by computing and not by asking? Each gives 1.0 or 0.0.

code         the first block of Python in the answer passes the tests that are the reference, in the sandbox
mathematics  the final answer equals the reference's
json         the answer is JSON
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from generators.rules.sandbox import Limits, run_all

Verifier = Literal["code", "mathematics", "json"]
BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?")


def verify(kind: Verifier, answers: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
    """1.0 for a right answer, 0.0 for a wrong one, None where there is no reference to hold it to."""
    return VERIFIERS[kind](answers, references)


def code(answers: Sequence[str], references: Sequence[str | None], limits: Limits | None = None) -> list[float | None]:
    """Whether the code in each answer passes its tests; an answer without a block is code itself."""
    given = [
        [blocks[0] if (blocks := BLOCK.findall(answer)) else answer, tests]
        for answer, tests in zip(answers, references, strict=True)
        if tests
    ]
    outcomes = iter(run_all(given, limits))
    return [float(next(outcomes).ok) if tests else None for tests in references]


def mathematics(answers: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
    """Whether the final answers are the same, as numbers where they are numbers."""
    values = list[float | None]()
    for answer, reference in zip(answers, references, strict=True):
        if not reference:
            values.append(None)
            continue
        wanted = final_answer(reference) or reference.strip()
        found = final_answer(answer)
        values.append(float(found is not None and same_number(found, wanted)))
    return values


def is_json(answers: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
    """Whether each answer is JSON and nothing else."""
    values = list[float | None]()
    for answer in answers:
        try:
            json.loads(answer)
            values.append(1.0)
        except json.JSONDecodeError:
            values.append(0.0)
    return values


VERIFIERS: dict[Verifier, Callable[[Sequence[str], Sequence[str | None]], list[float | None]]] = {
    "code": code,
    "mathematics": mathematics,
    "json": is_json,
}


def final_answer(text: str) -> str | None:
    r"""What a solution ends in: the last `\boxed{...}`, else what follows the last `####`, else its last number."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, at = 0, start + len("\\boxed")
        for end in range(at, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if not depth:
                return text[at + 1 : end].strip() or None
    if "####" in text:
        said = text.rsplit("####", 1)[1].strip().splitlines()
        return said[0].strip() if said else None
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def number(text: str) -> Fraction | None:
    r"""A number as people write it (`1,200`, `$3.50`, `75%`, `3/4`, `\frac{3}{4}`), exactly; None if it is not one."""
    plain = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text.strip())
    plain = re.sub(r"[\s,$%]|\\[,!;]|\\text\{[^}]*\}", "", plain.replace("\\$", "").replace("\\%", "")).rstrip(".")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def same_number(a: str, b: str) -> bool:
    """Whether two answers are equal: as numbers (to one part in 10^9, for what a program prints), else as text."""
    one, other = number(a), number(b)
    if one is None or other is None:
        return one is other and " ".join(a.split()).strip(".").lower() == " ".join(b.split()).strip(".").lower()
    return abs(one - other) <= Fraction(1, 10**9) * max(abs(one), abs(other), 1)
