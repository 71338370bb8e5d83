"""The work of rules (`rule.py`): what each answer is worth."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import UserError
from generators.rules.answer_columns import score
from generators.rules.bounded_process import BoundedProcess
from generators.rules.mathematics import equality, numbers
from generators.rules.rule import (
    Check,
    ExactRule,
    MathematicsRule,
    NumberRule,
    PythonRule,
    RefusalRule,
    RegexRule,
    Rule,
    TestsRule,
    Verifier,
)
from generators.rules.sandbox.programs import Limits, Unsafe, grade, together

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
MATCHER = BoundedProcess("generators.rules.pattern_search", cpu_s=3.0)
REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:very |so |really )?(?:sorry|afraid)\b(?=.{0,80}\b(?:can(?:no|')t|unable|won't|not able)\b)"
    r"|I (?:can(?:no|')?t|can not|could not|won't|will not|must decline|refuse|am unable|am not able)\b"
    r"(?=.{0,60}\b(?:help|assist|provide|answer|fulfil|comply|do that|support|create|write|give|engage|share|discuss|with that)\w*)"
    r"|I must (?:respectfully )?(?:decline|refuse)|as an AI\b.{0,80}\b(?:can(?:no|')t|unable|not able)\b)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Measured:
    """What a rule gives each row.

    Attributes:
        values: Float64; null is no verdict.
        faults: row -> what went wrong with it, in words.
    """

    values: pl.Series
    faults: dict[int, str] = field(default_factory=lambda: dict[int, str]())


def measure(rule: Rule, rows: pl.DataFrame, name: str, base: str = ".") -> NDArray[np.float64]:
    """The value of a rule for every row; null counts as 0, and so does a row without the reference that the rule needs.

    Args:
        rows: columns as in `answer_columns.COLUMNS`.
        base: the folder of the recipe, where a function of one's own is.

    Raises:
        UserError: as `values`; or a row has none that is a finite number.
    """
    measured = values(rule, rows, name, base)
    if measured.faults:
        row, told = next(iter(sorted(measured.faults.items())))
        more = f" So it is with {len(measured.faults)} of {len(rows)}." if len(measured.faults) > 1 else ""
        raise UserError(f"{told}: {_brief(rows['completion'][row])} (row {row}).{more}")
    numbers = measured.values.fill_null(0.0).to_numpy()
    if not np.isfinite(numbers).all():
        bad = int((~np.isfinite(numbers)).sum())
        raise UserError(f"rule `{name}`: `{rule}` is NaN or infinite for {bad} of {len(numbers)} answers.")
    return numbers


def values(rule: Rule, rows: pl.DataFrame, name: str, base: str = ".") -> Measured:
    """The value of a rule for every row, null where it has no verdict: an expression is null, there is no reference to compare with.

    Raises:
        UserError: it is no expression over these columns, or gives no number; it compares with `reference`, and no row has one;
            a function of one's own can't be called (`reward_function.call`).
    """
    if isinstance(rule, str):
        return Measured(score({name: rule}, rows).to_series())
    if isinstance(rule, PythonRule):
        from generators.rules import reward_function

        given, faults = reward_function.call(rule, rows, name, base)
        return Measured(pl.Series(name, given, pl.Float64), faults)
    completions = [text or "" for text in rows["completion"].to_list()]
    references: list[str | None] = rows["reference"].to_list() if rule.compares else [""] * len(rows)
    if len(rows) and all(reference is None for reference in references):
        raise UserError(
            f"rule `{name}` ({rule.kind}) compares answers with `reference`, and no prompt has one. Give "
            "the prompts a column `reference`, or check by an expression over `completion`."
        )

    def value(completion: str, reference: str | None) -> float | None:
        return None if reference is None else float(check(rule, completion, reference))

    with ThreadPoolExecutor(4 if isinstance(rule, TestsRule) else 1) as pool:
        return Measured(pl.Series(name, list(pool.map(value, completions, references)), pl.Float64))


def check(rule: Check, completion: str, reference: str) -> bool:
    """Whether an answer passes.

    Raises:
        UserError: the reference is none that this rule can read; this machine can't hold a program back.
    """
    match rule:
        case NumberRule():
            return numbers.agrees(completion, reference, rule.tolerance)
        case MathematicsRule():
            return equality.is_right(completion, reference)
        case ExactRule():
            return _plain(completion, rule.ignore_case) == _plain(reference, rule.ignore_case)
        case RegexRule():
            return _matches(rule, completion, reference)
        case TestsRule():
            return passes(code_of(completion), reference, rule.timeout, rule.memory_mb, rule.sandbox == "weaker")
        case RefusalRule():
            return _declines(rule, completion, reference)


def verify(
    kind: Verifier, answers: Sequence[str], references: Sequence[str | None], weaker: bool = False
) -> list[float | None]:
    """1.0 for a right answer, 0.0 for a wrong one, None where there is no reference to hold it to.

    code         the first block of Python in the answer passes the tests that are the reference, in the sandbox
    mathematics  the final answer equals the reference's
    json         the answer is JSON

    Args:
        weaker: run programs also where the kernel refuses a part of the sandbox.
    """
    return _code(answers, references, weaker) if kind == "code" else VERIFIERS[kind](answers, references)


def _brief(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 80 else f"{text[:77]}...")


def _matches(rule: RegexRule, completion: str, reference: str) -> bool:
    last: str | None = MATCHER.ask([rule.pattern, rule.ignore_case, completion])
    if not rule.compares or last is None:
        return last is not None
    return _plain(last, rule.ignore_case) == _plain(reference, rule.ignore_case)


def _declines(rule: RefusalRule, completion: str, reference: str) -> bool:
    wanted = reference.strip().lower() if rule.expect == "reference" else rule.expect
    if wanted not in ("refuse", "answer"):
        raise UserError(f"a refusal is expected by the reference `refuse` or `answer`, found `{reference}`.")
    opening = completion[:300].replace("\u2019", "'")
    return bool(REFUSAL.search(opening)) == (wanted == "refuse")


def _plain(text: str, ignore_case: bool) -> str:
    words = " ".join(text.split())
    return words.casefold() if ignore_case else words


def code_of(text: str) -> str:
    """The Python in an answer: its fenced blocks, one after the other; the whole text if there is none."""
    blocks = re.findall(
        r"^[ \t]*```(?:python|py)?[ \t]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE | re.IGNORECASE
    )
    return "\n".join(cast(Sequence[str], blocks)) if blocks else text


def passes(program: str, tests: str, timeout: float, memory_mb: int, weaker: bool = False) -> bool:
    """Whether a Python program passes its tests within limits.

    Raises:
        UserError: this machine can't hold a program back.
    """
    limits = Limits(cpu_s=int(timeout) + 1, wall_s=timeout, memory_mb=memory_mb, disk_mb=1)
    try:
        return grade(program, tests, limits, weaker).ok
    except Unsafe as error:
        raise UserError(f"a rule of kind `tests` runs what a model wrote, and {error}") from error


def _code(answers: Sequence[str], references: Sequence[str | None], weaker: bool) -> list[float | None]:
    """Whether the first block of each answer passes its tests; an answer without a block is code itself."""
    programs = [blocks[0] if (blocks := BLOCK.findall(answer)) else answer for answer in answers]
    try:
        outcomes = iter(
            together(
                [
                    partial(grade, program, tests, weaker=weaker)
                    for program, tests in zip(programs, references, strict=True)
                    if tests
                ]
            )
        )
    except Unsafe as error:
        raise UserError(f"the verifier `code` runs what a model wrote, and {error}") from error
    return [float(next(outcomes).ok) if tests else None for tests in references]


def _mathematics(answers: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
    return [
        float(equality.is_right(answer, reference)) if reference else None
        for answer, reference in zip(answers, references, strict=True)
    ]


def _is_json(answers: Sequence[str], references: Sequence[str | None]) -> list[float | None]:
    """Whether each answer is JSON and nothing else."""

    def value(answer: str) -> float:
        try:
            json.loads(answer, parse_int=str)  # numbers of any length
        except (json.JSONDecodeError, RecursionError):
            return 0.0
        return 1.0

    return [value(answer) for answer in answers]


VERIFIERS: dict[Verifier, Callable[[Sequence[str], Sequence[str | None]], list[float | None]]] = {
    "mathematics": _mathematics,
    "json": _is_json,
}
