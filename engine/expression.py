"""A rule in a recipe is one Polars SQL expression over the columns of a row.

STRPOS(LOWER(completion), LOWER(reference)) > 0
REGEXP_LIKE(text, '^[A-Z]') AND LENGTH(text) BETWEEN 20 AND 400
"""

from __future__ import annotations

import re

import polars as pl

from engine.errors import UserError, nearest

LONGEST = 200  # characters of what Polars says of an expression; it can be a page
FUNCTION = re.compile(r"[\w./-]+:[A-Za-z_]\w*")  # what somebody writes who means a function of their own


def column(expression: str, frame: pl.DataFrame, where: str = "expression") -> pl.Series:
    """The value of an expression for every row of a frame.

    Args:
        where: what to call the expression in an error message, e.g. "`keep` of stage `clean`".

    Raises:
        UserError: it does not parse, or names a column that is not there.
    """
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
