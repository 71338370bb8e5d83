"""The rules of `keep`: one's own Polars SQL expressions over a document's columns and statistics, true for what stays."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from engine.errors import UserError
from engine.expression import column
from engine.stage.preflight import Preflight

DOCUMENT: dict[str, pl.DataType] = {
    "id": pl.String(), "parents": pl.List(pl.String()), "text": pl.String(), "source": pl.String(), "offset": pl.Int64(),
    "metadata": pl.String(),
}  # fmt: skip


def verdict(name: str, expression: str, frame: pl.DataFrame) -> pl.Series:
    """Whether each row passes; null is no.

    Raises:
        UserError: it is no expression over these columns, or doesn't give true or false for every row.
    """
    where = f"`keep.{name}`"
    passes = column(expression, frame, where)
    if passes.dtype != pl.Boolean:
        raise UserError(f"{where}: `{expression}` gives {passes.dtype}, expected true or false.")
    if len(passes) != len(frame):
        raise UserError(
            f"{where}: `{expression}` gives one value for all rows, expected one for each: it has to be about a column."
        )
    return passes


def check(rules: Mapping[str, str], by_language: bool, known: Preflight) -> None:
    """For `Stage.check`: every rule is an expression over the columns that the documents have, or will have here.

    Args:
        by_language: the stage tells languages apart, so that a row has one.

    Raises:
        UserError: one is not. Where the documents are yet to be made, they count as having the columns of their kind and those
            that a filter adds.
    """
    given = known.inputs.get("documents", [])
    tables = [glimpse.rows for glimpse in given if glimpse.rows is not None]
    made = len(tables) == len(given)
    schema: dict[str, pl.DataType] = dict(DOCUMENT)
    for table in tables:
        schema |= pl.DataFrame(table).schema
    if by_language or not made:
        schema |= {"language": pl.String(), "language_score": pl.Float64()}
    if known.inputs.get("good") or not made:
        schema["quality"] = pl.Float64()
    for name, expression in rules.items():
        try:
            verdict(name, expression, pl.DataFrame(schema=schema))
        except UserError:
            # It may be about a statistic; what measures them takes a while to load, and most rules are not.
            _with_statistics(name, expression, schema, made)


def _with_statistics(name: str, expression: str, schema: dict[str, pl.DataType], made: bool) -> None:
    from pipelines.filter.statistics import COUNTS, STATISTICS

    measured = {name: pl.Int64() if name in COUNTS else pl.Float64() for name in STATISTICS}
    try:
        verdict(name, expression, pl.DataFrame(schema={**measured, **schema}))
    except UserError as error:
        hint = " If the stage before this one adds that column, run that first (`--only`)."
        raise UserError(f"{error}{hint if not made and 'names a column' in str(error) else ''}") from None
