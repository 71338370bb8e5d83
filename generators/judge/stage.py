"""`judge`: measure candidates that are already there, without generating a token of them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from engine.errors import UserError
from engine.stage.stage import Stage, port
from generators.backends.server.settings import ServerSettings
from generators.rules.rule import EQUALITY, Verifier

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


class Judge(Stage):
    """Judge candidates: by rules, by verifiers that compute, by a model that compares pairs, or by one that rates aspects.

    A rule is a Polars SQL expression that gives true or false or a number.

    A rule sees `completion` (text), `reference`, `prompt` (the last thing the user said), `length` (tokens) and
    `finish_reason`. Where it is null there is no verdict. Of grounded answers a model sees the passages. People's rankings of the same candidates calibrate the judge.
    """

    takes = {
        "candidates": port("Candidate", many=True),
        "model": port("Model", optional=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "Verdict"
    phase = "generation"
    work = "generators.judge.work:judge"
    random = True
    version = 2

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
    server: ServerSettings | None = Field(
        None, description="An OpenAI-compatible server that judges instead of a model."
    )

    @field_validator("rules")
    @classmethod
    def _check(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            return value
        from generators.rules.answer_columns import check_expressions

        try:
            check_expressions(value)
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

    def check(self, known: Preflight) -> None:
        from generators.backends.answerer import check_answerer
        from generators.backends.server.reachable import check_servers

        if self.pairwise or self.rubric:
            check_answerer(len(known.inputs.get("model", [])), int(self.server is not None))
            check_servers(known, self.server)

    def asks(self) -> bool:
        return self.server is not None and bool(self.pairwise or self.rubric)

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
