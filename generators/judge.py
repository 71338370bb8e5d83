"""`judge`: measure candidates that are already there, without generating a token of them again."""

from __future__ import annotations

import contextlib
from typing import Any

import polars as pl
from pydantic import Field, field_validator, model_validator

from engine.errors import UserError
from engine.expression import column
from engine.job import Job
from engine.schema import row_id
from engine.stage import Stage, port
from generators import ai_feedback
from generators.backend import Sampling, open_backend
from generators.openai_backend import Server

COLUMNS: dict[str, pl.DataType] = {
    "completion": pl.String(),
    "reference": pl.String(),
    "prompt": pl.String(),
    "length": pl.Int64(),
    "finish_reason": pl.String(),
}


class Judge(Stage):
    """Judge candidates: by rules, by a model that compares them in pairs, or by a model that rates aspects.

    A rule is a Polars SQL expression that gives true or false or a number.

    A rule sees `completion` (text), `reference`, `prompt` (the last thing the user said), `length` (tokens) and
    `finish_reason`. Where it is null there is no verdict.
    """

    takes = {"candidates": port("Candidate", many=True), "model": port("Model", optional=True)}
    gives = "Verdict"
    random = True

    rules: dict[str, str] = Field({}, description="Metric -> expression.")
    pairwise: bool = Field(False, description="Have the model compare every two answers to a prompt, in both orders.")
    criteria: str = Field("", description="What the model should judge pairs by.")
    rubric: dict[str, str] | bool = Field(
        False,
        description="Have the model rate these aspects (name -> meaning) from 1 to 5; true: UltraFeedback's four.",
    )
    temperature: float = Field(0.0, ge=0, le=10)
    max_tokens: int = Field(128, ge=1, description="Longest verdict, in tokens.")
    partition: int = Field(32, ge=1, description="Prompts a partition, with a model.")
    server: Server | None = Field(None, description="An OpenAI-compatible server that judges instead of a model.")

    @field_validator("rules")
    @classmethod
    def _check(cls, value: dict[str, str]) -> dict[str, str]:
        try:
            score(value, pl.DataFrame(schema=COLUMNS))
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _check_any(self) -> Judge:
        if not (self.rules or self.pairwise or self.rubric):
            raise ValueError("nothing to judge by: give `rules`, `pairwise: true` or `rubric`")
        return self

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        if not (self.pairwise or self.rubric):  # rules draw nothing
            identity.pop("seed")
        return identity

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None if self.pairwise or self.rubric else len(self.rules) * rows["candidates"]

    def run(self, job: Job) -> None:
        if self.rules:
            self._by_rules(job)
        if not (self.pairwise or self.rubric):
            return
        backend, name = open_backend(job, self.server, dtype="auto")
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, logprobs=False)
        with contextlib.closing(backend):
            if self.pairwise:
                ai_feedback.compare(job, backend, name, sampling, self.criteria, self.partition)
                job.summary(**ai_feedback.bias(job))
            if self.rubric:
                aspects = ai_feedback.ASPECTS if self.rubric is True else self.rubric
                ai_feedback.rate(job, backend, name, sampling, aspects, self.partition)

    def _by_rules(self, job: Job) -> None:
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
