"""`judge`: measure candidates that are already there, without generating a token of them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from engine.stage.stage import NotIdentity, Stage, port
from generators.backends.answerer import check_answerer
from generators.backends.replica_bounds import ReplicaCount
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from generators.rules.rule import EQUALITY, PROGRAMS, Rule, Sandbox, Verifier, sources, version
from generators.text import own_templates
from generators.text.own_templates import OwnTemplates

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight
    from generators.text.templates import Template

ASKED = "the conversation up to the answer: messages with `role` and `content`"
COMPARED = {
    "prompt": ASKED,
    "first": "the answer that is A",
    "second": "the answer that is B",
    "criteria": "what to judge by, and the principle drawn for this pair; may be empty",
    "passages": "texts that both answers rest on; none where each has its own",
    "first_passages": "those of A, where they are others than B's",
    "second_passages": "those of B, where they are others than A's",
}


class Judge(Stage):
    """Judge candidates: by rules, by verifiers that compute, by a model that compares pairs, or by one that rates aspects.

    A rule is a Polars SQL expression that gives true or false or a number, a check against something known (`{kind: number}`), or a
    Python function (`{python: "rewards.py:score"}`).

    A rule sees `completion` (text), `reference`, `prompt` (the last thing the user said), `length` (tokens) and
    `finish_reason`. Where it is null there is no verdict. Of grounded answers a model sees the passages. People's rankings of the same
    candidates calibrate the judge.
    """

    takes = {
        "candidates": port("Candidate", many=True),
        "model": port("Model", optional=True),
        "rankings": port("Ranking", many=True, optional=True),
    }
    gives = "Verdict"
    phase = "generation"
    work = "generators.judge.work:judge"
    residents = ("model",)
    random = True
    version = 2
    template_variables = {
        "pairwise": COMPARED,
        "graded": COMPARED,
        "rubric": {
            "prompt": ASKED,
            "completion": "the answer",
            "reference": "the known right answer, or none",
            "aspects": "name of an aspect -> what it means",
            "passages": "texts that a grounded answer was written from",
        },
    }

    rules: dict[str, Rule] = Field({}, description="Metric -> expression, check, or Python function.")
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
    temperature: float = Field(0.0, ge=0, le=10, description="Of the judge; 0 is greedy.")
    max_tokens: int = Field(128, ge=1, description="Longest verdict, in tokens.")
    partition: int = Field(32, ge=1, description="Prompts a partition, with a model.")
    replicas: Annotated[ReplicaCount, NotIdentity] = Field(
        1, description="Engines that share the partitions: a number, or `{min: 1, max: 8}`, as there is work."
    )
    server: ServerSettings | None = Field(
        None, description="An OpenAI-compatible server that judges instead of a model."
    )
    sandbox: Sandbox = "whole"
    template: OwnTemplates = {}

    @model_validator(mode="after")
    def _check_any(self) -> Judge:
        if not (self.rules or self.verifiers or self.pairwise or self.rubric):
            raise ValueError("nothing to judge by: give `rules`, `verifiers`, `pairwise: true` or `rubric`")
        given = [name for name in ("principles", "graded", "against") if getattr(self, name)]
        if given and not self.pairwise:
            raise ValueError(f"`{given[0]}` is for pairs: it needs `pairwise: true`")
        own_templates.check_inline(self.template, self.prompts(), self.template_variables)
        return self

    def prompts(self) -> list[str]:
        """The prompts that are sent, by name."""
        pairs = ["graded" if self.graded else "pairwise"] if self.pairwise else []
        return pairs + (["rubric"] if self.rubric else [])

    def templates(self, base: str | Path) -> dict[str, Template]:
        """The recipe's own templates, by prompt."""
        return own_templates.load(self.template, self.prompts(), self.template_variables, base)

    def asks(self) -> bool:
        return self.server is not None and bool(self.pairwise or self.rubric)

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        for name in ("verifiers", "principles", "graded", "against", "template"):
            if not identity[name]:  # so that what they were not used for keeps its key
                identity.pop(name)
        if not (self.pairwise or self.rubric):  # rules draw nothing
            identity.pop("seed")
        if "mathematics" in self.verifiers:
            identity["equality"] = EQUALITY
        if "code" in self.verifiers:
            identity["programs"] = PROGRAMS
        return {**identity, **version(self.rules.values()), **own_templates.identity(self.template, self.prompts())}

    def sources(self, base: str) -> dict[str, str]:
        return {**sources(self.rules.values(), base), **own_templates.sources(self.template, self.prompts(), base)}

    def check(self, known: Preflight) -> None:
        from generators.rules import reward_function

        self.templates(known.base)
        reward_function.check(self.rules.values(), known)
        if self.pairwise or self.rubric:
            check_answerer(len(known.inputs.get("model", [])), int(self.server is not None))
            check_servers(known, self.server)

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        model = self.pairwise or self.rubric
        return None if model else (len(self.rules) + len(self.verifiers)) * rows["candidates"]
