"""The columns that rules see of an answer, and the rules that are Polars SQL expressions over them."""

from __future__ import annotations

import polars as pl

from engine.errors import UserError
from engine.expression import column

COLUMNS: dict[str, pl.DataType] = {
    "completion": pl.String(),
    "reference": pl.String(),
    "prompt": pl.String(),
    "length": pl.Int64(),
    "finish_reason": pl.String(),
}


def readable(candidates: pl.DataFrame) -> pl.DataFrame:
    """What rules see of Candidate rows: `completion`, `reference`, `prompt`, `length`, `finish_reason`."""
    said = pl.col("prompt").list.eval(
        pl.element().struct.field("content").filter(pl.element().struct.field("role") == "user")
    )
    return candidates.select(
        completion=pl.col("completion").list.last().struct.field("content"),
        reference=pl.col("reference"),
        prompt=said.list.last(),
        length=pl.col("token_ids").list.len().cast(pl.Int64),
        finish_reason=pl.col("finish_reason"),
    ).cast(COLUMNS)  # pyright: ignore[reportArgumentType]


def score(rules: dict[str, str], frame: pl.DataFrame) -> pl.DataFrame:
    """The value of every rule for every row, one Float64 column a rule; true is 1, false is 0.

    Args:
        frame: columns as `readable` gives them.

    Raises:
        UserError: a rule does not parse, names a column that is not there, or is neither a number nor true or false.
    """
    columns = list[pl.Series]()
    for metric, expression in rules.items():
        value = column(expression, frame, f"rule `{metric}`")
        if not (value.dtype.is_numeric() or value.dtype == pl.Boolean or value.dtype == pl.Null):
            raise UserError(
                f"rule `{metric}`: `{expression}` gives {value.dtype}; a rule gives a number, or true or false."
            )
        if len(value) == 1 != len(frame):  # an expression without a column is one value for all rows
            value = value.new_from_index(0, len(frame))
        columns.append(value.cast(pl.Float64).alias(metric))
    return pl.DataFrame(columns)


def check_expressions(rules: dict[str, str]) -> None:
    """Bind and type-check rules without an answer.

    Raises:
        UserError: as for `score`.
    """
    score(rules, pl.DataFrame(schema=COLUMNS))
