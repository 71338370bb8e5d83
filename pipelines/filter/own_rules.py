"""Rules of one's own (`keep`): Polars SQL over the columns of documents, their statistics and their scores."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from engine.errors import UserError
from engine.expression import column
from pipelines.filter.statistics import COUNTS, STATISTICS


def apply(name: str, expression: str, frame: pl.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(which rows pass, the value that broke the rule of those that don't).

    Raises:
        UserError: the expression does not parse, names a column that is not there, or is not true or false for each row.
    """
    where = f"`keep.{name}`"
    verdict = column(expression, frame, where)
    if verdict.dtype != pl.Boolean:
        raise UserError(f"{where}: `{expression}` gives {verdict.dtype}, expected true or false.")
    if len(verdict) != len(frame):
        raise UserError(f"{where}: `{expression}` gives {len(verdict)} values for {len(frame)} rows.")
    values = np.array(["null" if v is None else expression for v in verdict], dtype=object)
    return verdict.fill_null(False).to_numpy(), values


def bind(rules: dict[str, str], documents: pa.Table | None, languages: bool, quality: bool) -> None:
    """Try every rule on no rows at all of these documents; on documents that are not there yet, whether it parses.

    Args:
        languages, quality: whether the stage gives its rows the columns that tell these.

    Raises:
        UserError: as `apply`.
    """
    for name, expression in rules.items():
        if documents is None:
            try:
                pl.sql_expr(expression)
            except pl.exceptions.PolarsError as error:
                raise UserError(
                    f"`keep.{name}`: `{expression}` is not an expression Polars SQL understands: {error}."
                ) from None
            continue
        frame = cast(pl.DataFrame, pl.from_arrow(documents.slice(0, 0)))
        more = {statistic: pl.Int64 if statistic in COUNTS else pl.Float64 for statistic in STATISTICS}
        more |= {"language": pl.String, "language_score": pl.Float64} if languages else {}
        more |= {"quality": pl.Float64} if quality else {}
        frame = frame.with_columns(pl.lit(None, kind).alias(n) for n, kind in more.items() if n not in frame.columns)
        apply(name, expression, frame)
