"""A draft: one row in the making, written as a function that asks a model, reads what it says and asks again.

    def draft(problem: str) -> Draft:
        answer = yield Query([user(problem)], sampling)         # one step; `lockstep.py` batches all drafts' steps
        if not answer.text.endswith("."):
            raise Rejected("cut_off", answer.text)
        return Made([user(problem), assistant(answer.text)])    # or a list of drafts that go on from here

Methods are part of a recipe's configuration, so that this file loads nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from generators.backends.protocol import Answer, Sampling
from generators.drafts.content import fault
from generators.rules.sandbox.programs import Limits, Outcome, grade, run
from generators.text.prompts import Message

YES_NO = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Query:
    """A question to the model.

    Attributes:
        messages: a conversation; or token ids to go on from, which only a model on this machine can.
        schema: a JSON Schema that the answer follows, or the draft is rejected.
        template: the digest of the template that the question was rendered from, for the row.
    """

    messages: list[Message] | tuple[int, ...]
    sampling: Sampling
    schema: dict[str, Any] | None = None
    template: str = ""


@dataclass(frozen=True)
class Request:
    """A question by the name of its prompt, `METHOD/PROMPT`: who carries the draft renders it, by the recipe's template if it has one."""

    prompt: str
    sampling: Sampling
    schema: dict[str, Any] | None
    values: dict[str, Any]


@dataclass(frozen=True)
class Execution:
    """A program to run in the sandbox, or to grade by tests, instead of a question; the reply is an `Outcome`.

    Attributes:
        weaker: also where the kernel refuses a part of the sandbox.
    """

    program: str
    limits: Limits
    tests: str | None = None
    weaker: bool = False

    def carried_out(self) -> Outcome:
        """Raises: Unsafe."""
        if self.tests is None:
            return run(self.program, self.limits, weaker=self.weaker)
        return grade(self.program, self.tests, self.limits, self.weaker)


@dataclass(frozen=True)
class Made:
    """A finished draft.

    Attributes:
        key: what has to be new about it: compared with everything that is there (`novelty.py`).
        metadata: facts for the row, JSON.
        tools: definitions of the tools that the assistant may call, if there are any.
    """

    messages: list[Message]
    key: str
    parents: list[str] = field(default_factory=lambda: list[str]())
    reference: str | None = None
    metadata: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    tools: list[dict[str, Any]] | None = None


class Rejected(Exception):
    """This draft comes to nothing: a short code and the particulars. `failed`: something broke, nobody chose.

    Args:
        facts: for the row's metadata, as those of a draft that was made (`score`).
    """

    def __init__(self, reason: str, detail: str = "", failed: bool = False, **facts: int | str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.failed, self.facts = reason, detail, failed, facts


class Useless(Rejected):
    """An answer is none: nothing in it, an echo, a loop, not in the form asked for. It is not kept: the next run asks again.

    Args:
        answers: which; without any, the last one.
    """

    def __init__(self, reason: str, detail: str = "", answers: Sequence[Answer] = ()) -> None:
        super().__init__(reason, detail)
        self.answers = list(answers)


Reply: TypeAlias = Any  # an Answer to a Query, an Outcome to an Execution
Draft: TypeAlias = "Generator[Query | Request | Execution, Reply, Made | Sequence[Draft]]"


def ask(name: str, sampling: Sampling, schema: dict[str, Any] | None = None, **values: Any) -> Request:
    """A question by the prompt `name`, with these values."""
    return Request(name, sampling, schema, values)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def yes(answer: Answer) -> bool:
    """What an answer that follows `YES_NO` says."""
    return json.loads(answer.text)["answer"] == "yes"


def whole(answer: Answer) -> str:
    """The text of an answer that came to its own end.

    Raises:
        Rejected: it was cut off, is empty, or says nothing (`content.py`).
    """
    text = answer.text.strip()
    if answer.finish_reason == "length":
        raise Rejected("cut_off", f"after {answer.tokens_out} tokens: {text[-100:]!r}")
    if not text:
        raise Useless("empty", "the model wrote nothing")
    if found := fault(text):
        raise Useless(*found)
    return text
