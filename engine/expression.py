"""A rule in a recipe is one Polars SQL expression over the columns of a row.

STRPOS(LOWER(completion), LOWER(reference)) > 0
REGEXP_LIKE(text, '^[A-Z]') AND LENGTH(text) BETWEEN 20 AND 400
"""

from __future__ import annotations

import re

import polars as pl

from engine.errors import UserError, nearest

LONGEST = 200  # characters of what Polars says of an expression; it can be a page
# Polars recurses over an expression: 20,000 terms ended the process.
MOST_CHARACTERS, MOST_WORDS = 50_000, 2_000
WIDEST = 10_000  # what a text is padded to; and by how much one grows in all replacements
WORD = re.compile(r"'(?:[^']|'')*'|\w+|[^\w\s]")
GROWS = re.compile(r"\b(LPAD|RPAD|REPLACE)\s*\(", re.IGNORECASE)
FUNCTION = re.compile(r"[\w./-]+:[A-Za-z_]\w*")  # what somebody writes who means a function of their own


def column(expression: str, frame: pl.DataFrame, where: str = "expression") -> pl.Series:
    """The value of an expression for every row of a frame.

    Args:
        where: what to call the expression in an error message, e.g. "`keep` of stage `clean`".

    Raises:
        UserError: it does not parse, or names a column that is not there.
    """
    if fault := _boundless(expression):
        shown = expression if len(expression) <= LONGEST else f"{expression[:LONGEST]}..."
        raise UserError(f"{where}: `{shown.encode('utf-8', 'backslashreplace').decode()}` {fault}.")
    try:
        return frame.select(pl.sql_expr(expression).alias("value")).to_series()
    except pl.exceptions.ColumnNotFoundError as error:
        name = str(error).split("\n")[0].strip("'\" ").removeprefix("unable to find column ").split(";")[0].strip("\"'")
        raise UserError(
            f"{where}: `{expression}` names a column that is not there: {name}.{nearest(name, frame.columns)} "
            f"Columns: {', '.join(frame.columns)}."
        ) from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if FUNCTION.fullmatch(expression):
            hint = f'To name a Python function: `{{python: "{expression}"}}`.'
            raise UserError(f"{where}: `{expression}` is not an expression of Polars SQL. {hint}") from None
        told = str(error).strip().partition("\n")[0].rstrip(".")
        told = told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
        raise UserError(f"{where}: `{expression}` is not an expression Polars SQL understands: {told}.") from None


def _boundless(expression: str) -> str | None:
    """Why an expression may take more time or memory than a rule does; None where it does not."""
    if len(expression) > MOST_CHARACTERS or sum(1 for _ in WORD.finditer(expression)) > MOST_WORDS:
        return f"is longer than {MOST_CHARACTERS:,} characters or {MOST_WORDS:,} words. A Python function can say more"
    if any("\ud800" <= character <= "\udfff" for character in expression):
        return "is not UTF-8"
    grown = 1
    for match in GROWS.finditer(expression):
        arguments = _arguments(expression, match.end())
        if len(arguments) < 3:
            continue
        if match[1].upper() == "REPLACE":
            grown *= max(1, len(arguments[2]) - 2)
        elif not arguments[1].isdecimal() or int(arguments[1]) > WIDEST:
            return f"pads to {arguments[1]}; it should be a number, {WIDEST:,} at most"
    return f"makes texts {grown:,} times as long; {WIDEST:,} times at most" if grown > WIDEST else None


def _arguments(expression: str, start: int) -> list[str]:
    """The arguments of a call, whose bracket ends before `start`."""
    found, depth, begin = list[str](), 0, start
    for match in WORD.finditer(expression, start):
        word = match[0]
        if depth == 0 and word in ",)":
            found.append(expression[begin : match.start()].strip())
            begin = match.end()
            if word == ")":
                break
        depth += (word == "(") - (word == ")")
    return found
