"""A rule that is a Python function of one's own: what it is called with, and what its answer means.

It is called once for all the answers at hand (a part of a judged artifact, the rollouts of an iteration), by keyword, as TRL calls a
reward function: `prompts`, `completions`, `completion_ids`, and a column by its own name. It gets those that it names, all of them
where it has `**kwargs`, and gives one number an answer; true is 1, false is 0, and None is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine import user_code
from engine.errors import UserError
from engine.stage.preflight import Preflight
from engine.store.schema import spoken
from generators.rules.rule import PythonRule, Rule

COLUMNS = ("reference", "length", "finish_reason")
KEYWORDS = ("prompts", "completions", "completion_ids", *COLUMNS)


def check(rules: Iterable[Rule], known: Preflight) -> None:
    """For `Stage.check`: every function can be imported and takes what it would get; the plan says which code it is.

    Raises:
        UserError: one can't, or doesn't.
    """
    for rule in rules:
        if isinstance(rule, PythonRule):
            known.say(user_code.check(rule.python, known.base, KEYWORDS))


def call(rule: PythonRule, rows: pl.DataFrame, name: str, base: str) -> tuple[list[float | None], dict[int, str]]:
    """What the function gives every row, and what is wrong with some of them, in words, by row.

    Where it raises an exception for all, each row is tried by itself to find out whose fault it is; the others are asked for anew,
    together.

    Args:
        rows: `answer_columns.readable` of answers.
        base: the folder of the recipe.

    Raises:
        UserError: it can't be imported, gives something else than a number a row, or raises for every row.
    """
    function = user_code.load(rule.python, base)
    keywords = user_code.arguments(function, rule.python, KEYWORDS)
    root = Path(base).absolute()
    where = f"rule `{name}`: `{rule.python}`"

    def ask(chosen: Sequence[int]) -> list[Any]:
        asked = rows[list(chosen)]
        given = {keyword: _argument(rule, keyword, asked) for keyword in keywords}
        try:
            answer: Any = function(**given)
        except (Exception, SystemExit) as error:
            raise _Raised(user_code.failure(error, root)) from error
        return _listed(answer, len(chosen), where)

    values: list[float | None] = [None] * len(rows)
    faults: dict[int, str] = {}
    chosen = list(range(len(rows)))
    if not chosen:
        return values, faults
    try:
        given = ask(chosen)
    except _Raised as error:
        for row in chosen:
            try:
                ask([row])
            except _Raised as own:
                faults[row] = f"{where} raised for this answer: {own}"
        chosen = [row for row in chosen if row not in faults]
        if not chosen:
            raise UserError(f"{where} raised for all {len(rows)} answers: {error}.") from error
        if not faults:
            raise UserError(
                f"{where} raised for {len(rows)} answers together, and for none of them alone: {error}."
            ) from error
        try:
            given = ask(chosen)
        except _Raised as again:
            raise UserError(f"{where} raised for {len(chosen)} answers that it took one by one: {again}.") from again
    for row, value in zip(chosen, given, strict=True):
        number, wrong = _number(value)
        values[row] = number
        if wrong:
            faults[row] = f"{where} gave {wrong} for this answer; expected a number, or None for no verdict"
    return values, faults


class _Raised(Exception):
    """The function raised an exception; told as `FILE:LINE: its last line`."""


def _argument(rule: PythonRule, keyword: str, rows: pl.DataFrame) -> list[Any]:
    if keyword in COLUMNS:
        return rows[keyword].to_list()
    if keyword == "completion_ids":
        return rows[keyword].to_list() if keyword in rows.columns else [None] * len(rows)
    one = keyword.removesuffix("s")
    if rule.format == "standard":
        return [text or "" for text in rows[one].to_list()]
    return [spoken(messages or []) for messages in rows[f"{one}_messages"].to_list()]


def _listed(answer: Any, count: int, where: str) -> list[Any]:
    """A function's answer as a list of Python's own values: it may be a list, an array, a tensor, a series.

    Raises:
        UserError: it is something else, or not as long as there are rows.
    """
    for name in ("tolist", "to_list"):
        if hasattr(answer, name):
            answer = getattr(answer, name)()
            break
    if not isinstance(answer, list | tuple):
        raise UserError(f"{where} gave {_shown(answer)}; expected a list with a number for each of {count} answers.")
    if len(answer) != count:
        raise UserError(f"{where} gave {len(answer)} values for {count} answers; expected one for each.")
    return list(answer)


def _number(value: Any) -> tuple[float | None, str]:
    """The number that a value is, and what is wrong with it where it is none."""
    if hasattr(value, "item") and not isinstance(value, list | tuple):  # a scalar of numpy or torch
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            return None, _shown(value)
    if value is None:
        return None, ""
    if not isinstance(value, bool | int | float | np.number):
        return None, _shown(value)
    try:
        number = float(value)
    except OverflowError:
        return None, "a number too large for a float"
    return (number, "") if math.isfinite(number) else (None, str(number))


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
