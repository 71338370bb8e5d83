"""`label`: candidates to rankings, by people or scripted stand-ins in Argilla or Label Studio."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.stage.stage import Device, Footprint, NotIdentity, Stage, Switch, port
from labeling.tool.task import Asked


class ScriptedSettings(BaseModel):
    """A scripted annotator: reads the verdicts, with these faults. Never to be taken for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str
    noise: float = Field(0.0, ge=0, description="Scale of the Gumbel noise on every utility.")
    position_bias: float = Field(0.0, description="What the first answer shown gains over the last.")
    length_bias: float = Field(0.0, description="What an answer gains by being twice as long as the mean.")
    tie_margin: float = Field(0.0, ge=0, description="Answers closer than this are called equal.")


class Label(Stage):
    """Have answers judged in Argilla or Label Studio, by people or by scripted annotators.

    The local Argilla is started if no `ARGILLA_API_URL` names a remote one; Label Studio is where LABEL_STUDIO_URL says. Each prompt's answers are shown in an order of
    their own; ranks are mapped back. With people, the stage waits until every record has been judged `per_record` times.

    Rows carry two more columns where they are asked for: `ratings` (by aspect, in the order of the candidates), and
    `planted`, the candidate of an attention check that answers another prompt. Rejected: prompts with `one_answer`, and
    what annotators `discarded` or left as a `draft`.
    """

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", optional=True)}
    gives = "Ranking"
    phase = "people"
    previewed = False
    work = "labeling.label.work:collect_rankings"
    oversight = "labeling.label.lead_view:people"
    switches = {"people": Switch("People rank in the tool's UI, not scripted annotators.", {"scripted": "null"})}
    random = True

    tool: Annotated[Literal["argilla", "label_studio"], NotIdentity] = Field(
        "argilla",
        description="Where annotators work. `label_studio`: a server that LABEL_STUDIO_URL names, with a key of it in "
        "LABEL_STUDIO_API_KEY. Rows are the same, so rankings that are made stay when this is changed.",
    )
    dataset: str = Field(
        "rankings",
        description="The dataset's name in the tool; where another run's records have it, eight digits are added.",
    )
    workspace: str = Field(
        "flywheel",
        description="Of Argilla; made if it is not there. In Label Studio a part of the project's title, unless it is `flywheel`.",
    )
    answers: int = Field(4, ge=2, le=26, description="How many different answers to a prompt to show at most.")
    per_record: int = Field(1, ge=1, description="How many annotators judge each prompt.")
    people: tuple[str, ...] = Field((), description="User names of annotators, made if they don't exist.")
    scripted: tuple[ScriptedSettings, ...] | None = Field(
        None, description="Stand-ins for people; they need `verdicts`."
    )
    metric: str = Field("utility", description="The verdicts' metric that scripted annotators perceive.")
    asked: Asked = Field(
        "ranking", description="Rank the answers, say which of two is better, or rate each by `aspects` from 1 to 5."
    )
    aspects: tuple[str, ...] = Field((), description="Rate every answer by these, e.g. accuracy, helpfulness, safety.")
    top: int | None = Field(None, ge=1, description="Have the best this many ranked; the others share the last rank.")
    orders: Literal["prompt", "annotator"] = Field(
        "prompt",
        description="Shuffle the answers once a prompt, or anew for each annotator: each then has a workspace and a "
        "dataset of their own, and records are dealt out instead of going to whoever comes first.",
    )
    attention: float = Field(0.0, ge=0, le=0.5, description="Attention checks, as a share of the prompts.")
    suggest: bool = Field(False, description="Fill the form with the verdicts' ranking. It anchors people.")
    guidelines: str | None = Field(
        None, description="Markdown that annotators see; written from what is asked if left out."
    )
    correction: bool = Field(False, description="Ask for a better answer, too.")
    flags: tuple[str, ...] = Field((), description="Things an annotator may tick, two or more: [unsafe, wrong].")
    patience: Annotated[float, NotIdentity] = Field(
        120.0, description="Seconds to go on trying when the server is away."
    )

    def footprint(self, given: dict[str, list[dict[str, Any]]], device: Device) -> Footprint:
        """It waits for people, or for the server."""
        return Footprint(cores=0)

    def warm_up(self) -> tuple[str, ...]:
        """Argilla takes its time to start."""
        own = ("labeling.label.work:start_server",) if self.tool == "argilla" else ()
        return (*super().warm_up(), *own)

    @model_validator(mode="after")
    def _check(self) -> Label:
        if self.scripted is not None and len(self.scripted) < self.per_record:
            raise ValueError(
                f"per_record is {self.per_record}, but there are only {len(self.scripted)} scripted annotators"
            )
        if self.asked == "pairwise" and self.answers != 2:
            raise ValueError(f"`asked: pairwise` compares two answers: set `answers: 2` (it is {self.answers})")
        if self.asked == "rating" and not self.aspects:
            raise ValueError("`asked: rating` needs `aspects`, e.g. [accuracy, helpfulness, safety]")
        if self.top is not None and (self.asked != "ranking" or self.top >= self.answers):
            raise ValueError(f"`top` goes with rankings of more answers than it; here {self.asked} of {self.answers}")
        if self.orders == "annotator" and self.scripted is None and len(self.people) < self.per_record:
            raise ValueError(
                f"`orders: annotator` deals records out, each to {self.per_record}: name that many `people` or more"
            )
        if len(self.flags) == 1:
            raise ValueError("annotators are asked for two `flags` or more, or none")
        if self.suggest and self.asked == "rating":
            raise ValueError("`suggest` goes with rankings and pairs; ratings can't be suggested")
        return self
