"""`judge`: measure candidates that are already there, without generating a token of them again."""

from __future__ import annotations

import contextlib
from typing import Any

import polars as pl
from pydantic import Field, field_validator, model_validator

from engine.errors import UserError, nearest
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.schema import row_id
from generators.backends.protocol import Sampling, open_backend
from generators.backends.server.chat_completions import Server
from generators.judge import model_judge as ai_feedback
from generators.rules.columns import COLUMNS, readable, score
from generators.rules.rule import EQUALITY, Verifier
from generators.rules.verify import verify


class Judge(Stage):
    """Judge candidates: by rules, by verifiers that compute, by a model that compares pairs, or by one that rates aspects.

    A rule is a Polars SQL expression that gives true or false or a number.

    A rule sees `completion` (text), `reference`, `prompt` (the last thing the user said), `length` (tokens) and
    `finish_reason`. Where it is null there is no verdict. People's rankings of the same candidates calibrate the judge.
    """

    takes = {
        "candidates": port("Candidate", many=True),
        "model": port("Model", optional=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "Verdict"
    phase = "generation"
    random = True

    rules: dict[str, str] = Field({}, description="Metric -> expression.")
    verifiers: list[Verifier] = Field([], description="code: passes the tests in `reference`; mathematics: its answer.")
    pairwise: bool = Field(False, description="Have the model compare every two answers to a prompt, in both orders.")
    criteria: str = Field("", description="What the model should judge pairs by.")
    principles: tuple[str, ...] = Field((), description="A constitution: one is drawn for each pair to judge it by.")
    graded: bool = Field(False, description="Have the model say how much better, from 0 to 1, instead of which is.")
    against: str | None = Field(None, description="Compare every answer with this model's only (its name in the rows).")
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
        if not (self.rules or self.verifiers or self.pairwise or self.rubric):
            raise ValueError("nothing to judge by: give `rules`, `verifiers`, `pairwise: true` or `rubric`")
        given = [name for name in ("principles", "graded", "against") if getattr(self, name)]
        if given and not self.pairwise:
            raise ValueError(f"`{given[0]}` is for pairs: it needs `pairwise: true`")
        return self

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        for name in ("verifiers", "principles", "graded", "against"):
            if not identity[name]:  # so that what they were not used for keeps its key
                identity.pop(name)
        if not (self.pairwise or self.rubric):  # rules draw nothing
            identity.pop("seed")
        if "mathematics" in self.verifiers:
            identity["equality"] = EQUALITY
        return identity

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        model = self.pairwise or self.rubric
        return None if model else (len(self.rules) + len(self.verifiers)) * rows["candidates"]

    def run(self, job: Job) -> None:
        if self.rules or self.verifiers:
            self._by_rules(job)
        if not (self.pairwise or self.rubric):
            return
        backend, name = open_backend(job, self.server, dtype="auto")
        sampling = Sampling(self.temperature, max_tokens=self.max_tokens, logprobs=False)
        with contextlib.closing(backend):
            if self.pairwise:
                if self.against is not None:
                    self._check_against(job, self.against)
                how = ai_feedback.Comparison(self.criteria, self.principles, self.graded, self.against)
                ai_feedback.compare(job, backend, name, sampling, how, self.partition)
            if self.rubric:
                aspects = ai_feedback.ASPECTS if self.rubric is True else self.rubric
                ai_feedback.rate(job, backend, name, sampling, aspects, self.partition)
        job.summary(**ai_feedback.report(job, self.against))

    def _check_against(self, job: Job, model: str) -> None:
        models = {
            name for artifact in job.all("candidates") for name in artifact.to_table(["model"])["model"].to_pylist()
        }
        if model not in models:
            raise UserError(
                f"`against: {model}` made none of the candidates.{nearest(model, models)} Models: {', '.join(sorted(models))}."
            )

    def _by_rules(self, job: Job) -> None:
        for part in job.parts("candidates"):
            frame = pl.DataFrame(part.table)
            seen = readable(frame)
            said, known = (seen[name].to_list() for name in ("completion", "reference"))
            measured = [
                pl.Series(kind, verify(kind, [text or "" for text in said], known), pl.Float64)
                for kind in self.verifiers
            ]
            scores = pl.concat(
                [frame.select("id", "model"), score(self.rules, seen), pl.DataFrame(measured)], how="horizontal"
            )
            verdicts = (
                scores.rename({"id": "subject"})
                .unpivot(on=[*self.rules, *self.verifiers], index=["subject", "model"], variable_name="metric")
                .drop_nulls("value")
            )
            ids = [
                row_id("Verdict", "rules", s, m, self.rules.get(m, "verifier"))
                for s, m in verdicts["subject", "metric"].iter_rows()
            ]
            part.commit(
                verdicts.with_columns(
                    pl.Series("id", ids, pl.String), pl.concat_list("subject").alias("parents")
                ).to_arrow()
            )
