"""`judge`: measure candidates that are already there, without generating a token of them again."""

from __future__ import annotations

import polars as pl
from pydantic import Field, field_validator

from engine.errors import UserError
from engine.expression import column
from engine.job import Job
from engine.schema import row_id
from engine.stage import Stage, port

COLUMNS: dict[str, pl.DataType] = {
    "completion": pl.String(),
    "reference": pl.String(),
    "prompt": pl.String(),
    "length": pl.Int64(),
    "finish_reason": pl.String(),
}


class Judge(Stage):
    """Score candidates by rules: each a Polars SQL expression, true or false or a number.

    A rule sees `completion` (text), `reference`, `prompt` (the last thing the user said), `length` (tokens) and
    `finish_reason`. Where it is null there is no verdict.
    """

    takes = {"candidates": port("Candidate", many=True)}
    gives = "Verdict"

    rules: dict[str, str] = Field(min_length=1, description="Metric -> expression.")

    @field_validator("rules")
    @classmethod
    def _check(cls, value: dict[str, str]) -> dict[str, str]:
        try:
            score(value, pl.DataFrame(schema=COLUMNS))
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return len(self.rules) * rows["candidates"]

    def run(self, job: Job) -> None:
        for part in job.parts("candidates"):
            frame = pl.DataFrame(part.table)
            scores = pl.concat([frame.select("id", "model"), score(self.rules, readable(frame))], how="horizontal")
            verdicts = (
                scores.rename({"id": "subject"})
                .unpivot(on=list(self.rules), index=["subject", "model"], variable_name="metric")
                .drop_nulls("value")
            )
            ids = [
                row_id("Verdict", "rules", s, m, self.rules[m]) for s, m in verdicts["subject", "metric"].iter_rows()
            ]
            part.commit(
                verdicts.with_columns(
                    pl.Series("id", ids, pl.String), pl.concat_list("subject").alias("parents")
                ).to_arrow()
            )


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
