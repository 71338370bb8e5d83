"""What people are asked and what they answer: the annotation schema, whatever tool shows it.

Answers are named by the position they are shown at: `a` is the first, and so on. Which candidate that is, the
caller knows, who shuffled them; nothing that is shown tells models apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from string import ascii_lowercase
from typing import Any, Literal

from engine.errors import UserError

Status = Literal["submitted", "draft", "discarded"]
Asked = Literal["ranking", "pairwise", "rating"]
Prompt = Sequence[Mapping[str, str]] | str  # messages (role, content), or one text

MAX_NAME = 64
RATINGS = (1, 2, 3, 4, 5)

_TO_DO: dict[Asked, str] = {
    "ranking": "Rank the answers from best to worst. Answers that are equally good may share a rank.",
    "pairwise": "Say which of the two answers is better, or that they are equally good.",
    "rating": "Rate every answer on its own, from 1 (bad) to 5 (good), by each of the aspects.",
}
_HOW = """Judge whether an answer is right, then whether it helps, then whether it is safe. Length alone is no merit.
Discard a record that you cannot judge."""


@dataclass(frozen=True)
class RankingTask:
    """What annotators are asked about `answers` answers to a prompt.

    asked: rank them, say which of two is better, or rate each by `aspects` from 1 to 5 (its rank is then by the mean).
    aspects: with a ranking or a pair, ratings that are asked for as well.
    top: rank the best this many; the others share the next rank, which is read as not ranked.
    guidelines: what annotators can read at any time; a text that fits what is asked if not given.
    correction, flags: ask for a better answer, and for what is wrong; nobody has to answer these.
    min_submitted: the number of annotators every record goes to.
    chat: show the prompt as a conversation, else as one text.
    metadata, vectors: (name -> type, name -> dimensions) to filter and search by in the UI.
    """

    name: str
    answers: int
    workspace: str = "flywheel"
    asked: Asked = "ranking"
    aspects: tuple[str, ...] = ()
    top: int | None = None
    chat: bool = True
    correction: bool = False
    flags: tuple[str, ...] = ()
    guidelines: str = ""
    min_submitted: int = 1
    metadata: Mapping[str, Literal["terms", "integer", "float"]] = field(default_factory=dict[str, Any])
    vectors: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        if not self.guidelines:
            object.__setattr__(self, "guidelines", f"{_TO_DO[self.asked]}\n\n{_HOW}")
        if not 2 <= self.answers <= len(ascii_lowercase):
            raise UserError(f"Dataset {self.name!r}: {self.answers} answers to rank; from 2 to 26 can be ranked.")
        if self.min_submitted < 1:
            raise UserError(f"Dataset {self.name!r}: min_submitted is {self.min_submitted}; at least 1 is needed.")
        for what, name in (("dataset", self.name), ("workspace", self.workspace)):
            check_name(name, what, limit=200)
        if len(self.flags) == 1:
            raise UserError(
                f"Dataset {self.name!r}: one flag, {self.flags[0]!r}; Argilla asks for two or more, or none."
            )
        if self.asked == "pairwise" and self.answers != 2:
            raise UserError(f"Dataset {self.name!r}: a pairwise question compares 2 answers, not {self.answers}.")
        if self.asked == "rating" and not self.aspects:
            raise UserError(f"Dataset {self.name!r}: name the `aspects` to rate answers by, e.g. accuracy, safety.")
        for aspect in self.aspects:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,39}", aspect):
                raise UserError(
                    f"Dataset {self.name!r}: {aspect!r} can't be an aspect: expected lower-case letters, digits and _."
                )
        if self.top is not None and not (self.asked == "ranking" and 1 <= self.top < self.answers):
            raise UserError(
                f"Dataset {self.name!r}: top is {self.top}; from a ranking of {self.answers} answers the best 1 to"
                f" {self.answers - 1} can be asked for."
            )

    @property
    def labels(self) -> str:
        """The names of the answers, in the order shown."""
        return ascii_lowercase[: self.answers]


def own_task(task: RankingTask, annotator: str) -> RankingTask:
    """The task for records that this annotator alone sees: a dataset by the same name, in a workspace of their own."""
    return replace(task, workspace=f"{task.workspace}-{annotator}", min_submitted=1)


@dataclass(frozen=True)
class RankingRecord:
    """One prompt with its answers, in the order to show them.

    `external_id` is the caller's, unique in a dataset. `suggested` are ranks that the form is filled with: they anchor
    people, and Enter submits them.
    """

    external_id: str
    prompt: Sequence[Mapping[str, str]]  # messages: role, content
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    vectors: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Any])
    suggested: Sequence[int] | None = None


@dataclass(frozen=True)
class RankingResponse:
    """One annotator's answer.

    `ranks[i]` is the rank (1 best, ties equal) of the answer shown at position i; None where it was left open: in a
    draft, a discarded response, or below the `top` that was asked for. `ratings` is by aspect, then as `ranks`.
    """

    id: str
    record_id: str
    external_id: str
    user: str
    status: Status
    ranks: tuple[int | None, ...]
    correction: str | None
    flags: tuple[str, ...]
    inserted_at: datetime
    updated_at: datetime
    ratings: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class RecordView:
    """A record as an annotator sees it.

    `answered`: this user has a response to it already, in whatever status. `metadata` is what this user may see of it.
    """

    id: str
    external_id: str
    prompt: Prompt
    answers: tuple[str, ...]
    answered: bool
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Submission:
    """What an annotator submits for a record: a rank for every answer, in the order shown; ratings by aspect."""

    record_id: str
    ranks: Sequence[int | None]
    status: Status = "submitted"
    correction: str | None = None
    flags: Sequence[str] = ()
    ratings: Mapping[str, Sequence[int | None]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Annotator:
    """A user of the server. `password` is None for someone whose password this machine does not know."""

    name: str
    api_key: str
    password: str | None


@dataclass(frozen=True)
class Dataset:
    """A published dataset on the server."""

    id: str
    workspace_id: str
    task: RankingTask
    url: str


@dataclass(frozen=True)
class PushCount:
    new: int
    present: int


@dataclass(frozen=True)
class UserProgress:
    submitted: int
    draft: int
    discarded: int


@dataclass(frozen=True)
class DatasetProgress:
    """`completed` counts the records with at least `min_submitted` submissions."""

    total: int
    completed: int
    users: dict[str, UserProgress]


def check_name(name: str, what: str, limit: int = MAX_NAME) -> None:
    if not name or len(name) > limit or name != name.strip() or not name.isprintable():
        shown = name if len(name) <= 40 else f"{name[:40]}... ({len(name)} characters)"
        raise UserError(
            f"{shown!r} can't be the name of a {what}: expected 1 to {limit} printable characters,"
            " with no space at either end."
        )
