"""The columns that rules see of an answer, and the rules that are Polars SQL expressions over them."""

from __future__ import annotations

import polars as pl

from engine.errors import UserError
from engine.expression import column
from engine.store.schema import EXTRAS

COLUMNS: dict[str, pl.DataType] = {
    "completion": pl.String(),
    "reference": pl.String(),
    "prompt": pl.String(),
    "length": pl.Int64(),
    "finish_reason": pl.String(),
}

# What functions of one's own may ask for beside them: the conversation, what was answered, and its ids as sampled.
_MESSAGES = pl.List(pl.Struct(dict.fromkeys(("role", "content", *EXTRAS), pl.String())))
MESSAGES: dict[str, pl.DataType] = {
    "prompt_messages": _MESSAGES,
    "completion_messages": _MESSAGES,
    "completion_ids": pl.List(pl.Int64()),
}


def readable(candidates: pl.DataFrame) -> pl.DataFrame:
    """What rules see of Candidate rows: `COLUMNS`, and beside them, for functions, the messages and the ids themselves."""
    said = pl.col("prompt").list.eval(
        pl.element().struct.field("content").filter(pl.element().struct.field("role") == "user")
    )
    return candidates.select(
        completion=pl.col("completion").list.last().struct.field("content"),
        reference=pl.col("reference"),
        prompt=said.list.last(),
        length=pl.col("token_ids").list.len().cast(pl.Int64),
        finish_reason=pl.col("finish_reason"),
        prompt_messages=pl.col("prompt"),
        completion_messages=pl.col("completion"),
        completion_ids=pl.col("token_ids"),
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
        value = _value(expression, frame, f"rule `{metric}`")
        if len(value) == 1 != len(frame):  # an expression without a column is one value for all rows
            value = value.new_from_index(0, len(frame))
        columns.append(value.cast(pl.Float64).alias(metric))
    return pl.DataFrame(columns)


def _value(expression: str, frame: pl.DataFrame, where: str) -> pl.Series:
    value = column(expression, frame.select(name for name in COLUMNS if name in frame.columns), where)
    if not (value.dtype.is_numeric() or value.dtype == pl.Boolean or value.dtype == pl.Null):
        raise UserError(f"{where}: `{expression}` gives {value.dtype}; a rule gives a number, or true or false.")
    return value


def check_expression(expression: str, where: str = "this rule") -> None:
    """Bind and type-check a rule without an answer.

    Raises:
        UserError: as for `score`.
    """
    _value(expression, pl.DataFrame(schema=COLUMNS), where)
