"""A draft: one row in the making, written as a function that asks a model, reads what it says and asks again.

    def draft(problem: str) -> Draft:
        answer = yield Ask(template.render(problem=problem), sampling)     # one step; the loop batches all drafts' steps
        if not answer.text.endswith("."):
            raise Rejected("cut_off", answer.text)
        return Made([user(problem), assistant(answer.text)])               # or a list of drafts that go on from here

`carry` runs many drafts in lockstep: what all of them ask next is one batch of the engine. The seed of a question is
derived from the draft's number and the step, so the rows do not depend on how drafts are batched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from generators.backends import json_answers as structured
from generators.backends.local import Local
from generators.backends.protocol import Answer, Backend, Failure, Sampling
from generators.rules.sandbox import Limits, Outcome, run_all
from generators.text.prompts import Message
from generators.text.templates import Template

YES_NO = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
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
class Run:
    """Programs to run one after the other in one sandbox, instead of a question; the reply is an `Outcome`."""

    programs: list[str]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Made:
    """A finished draft.

    Attributes:
        key: what has to be new about it: compared with everything that is there (`novelty.py`).
        metadata: facts for the row, JSON.
    """

    messages: list[Message]
    key: str
    parents: list[str] = field(default_factory=lambda: list[str]())
    reference: str | None = None
    metadata: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())


class Rejected(Exception):
    """This draft comes to nothing: a short code and the particulars. `failed`: something broke, nobody chose."""

    def __init__(self, reason: str, detail: str = "", failed: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.failed = reason, detail, failed


Reply: TypeAlias = Any  # an Answer to an Ask, an Outcome to a Run
Draft: TypeAlias = "Generator[Ask | Run, Reply, Made | Sequence[Draft]]"


@dataclass
class Line:
    """One draft under way, or how it ended.

    Attributes:
        path: its number, and its place among the drafts that its parent ended in.
        seeds: of what it asked, from the first step on.
        tokens: in and out; what drafts have in common before they split counts for the first of them.
        templates: digests of the templates that were used.
    """

    path: tuple[int, ...]
    draft: Draft
    seeds: list[int] = field(default_factory=lambda: list[int]())
    templates: list[str] = field(default_factory=lambda: list[str]())
    tokens: tuple[int, int] = (0, 0)
    result: Made | Rejected | None = None


def carry(backend: Backend, drafts: Sequence[tuple[int, Draft]], derive: Callable[..., int]) -> list[Line]:
    """Run numbered drafts to their ends. Returns a line for each result, in the order of the drafts.

    Args:
        derive: the seed for a path and a step (`Job.derive`).
    """
    going = [Line((number,), draft) for number, draft in drafts]
    replies: list[Answer | Failure | Outcome | None] = [None] * len(going)
    ended = list[Line]()
    while going:
        steps = list[tuple[Line, Ask | Run]]()
        for line, reply in zip(going, replies, strict=True):
            _step(line, reply, steps, ended)
        going = [line for line, _ in steps]
        asks = [(index, line, step) for index, (line, step) in enumerate(steps) if isinstance(step, Ask)]
        for _, line, step in asks:
            line.seeds.append(derive("draft", *line.path, len(line.seeds)))
            if step.template and step.template not in line.templates:
                line.templates.append(step.template)
        answers = _answers(backend, [step for _, _, step in asks], [line.seeds[-1] for _, line, _ in asks])
        for (_, line, _), answer in zip(asks, answers, strict=True):
            if isinstance(answer, Answer):
                line.tokens = (line.tokens[0] + answer.tokens_in, line.tokens[1] + answer.tokens_out)
        runs = [(index, step) for index, (_, step) in enumerate(steps) if isinstance(step, Run)]
        limits = {step.limits for _, step in runs}
        found: dict[int, Any] = dict(zip([index for index, _, _ in asks], answers, strict=True))
        for limit in limits:
            own = [(index, step.programs) for index, step in runs if step.limits == limit]
            found.update(zip([i for i, _ in own], run_all([programs for _, programs in own], limit), strict=True))
        replies = [found[index] for index in range(len(steps))]
    return sorted(ended, key=lambda line: line.path)


def _step(line: Line, reply: Any, steps: list[tuple[Line, Ask | Run]], ended: list[Line]) -> None:
    """Let a draft go on to its next step, its end, or the drafts it ends in."""
    try:
        if isinstance(reply, Failure):
            line.draft.close()
            raise Rejected(reply.reason, reply.detail, failed=True)
        steps.append((line, next(line.draft) if reply is None else line.draft.send(reply)))
    except StopIteration as end:
        made: Made | Sequence[Draft] = end.value
        if isinstance(made, Made):
            line.result = made
            ended.append(line)
            return
        for place, draft in enumerate(made):
            tokens = (0, 0) if place else line.tokens
            child = Line((*line.path, place), draft, list(line.seeds), list(line.templates), tokens)
            _step(child, None, steps, ended)
    except Rejected as error:
        line.result = error
        ended.append(line)


def _answers(backend: Backend, asks: Sequence[Ask], seeds: Sequence[int]) -> list[Answer | Failure]:
    """Answers in order; one batch for each way of sampling."""
    groups: dict[Any, list[int]] = {}
    for index, ask in enumerate(asks):
        kind = "ids" if isinstance(ask.messages, tuple) else json.dumps(ask.schema) if ask.schema else ""
        groups.setdefault((ask.sampling, kind), []).append(index)
    answers = dict[int, Answer | Failure]()
    for (sampling, kind), chosen in groups.items():
        own = [seeds[index] for index in chosen]
        if kind == "ids":
            made = _continue(backend, [asks[index].messages for index in chosen], sampling, own)
        else:
            conversations = [list(asks[index].messages) for index in chosen]
            schema = asks[chosen[0]].schema
            made = (
                structured.complete(backend, conversations, sampling, own, schema)[0]  # pyright: ignore[reportArgumentType]
                if schema
                else backend.complete(conversations, sampling, own)  # pyright: ignore[reportArgumentType]
            )
        answers.update(zip(chosen, made, strict=True))
    return [answers[index] for index in range(len(asks))]


def _continue(backend: Backend, prompts: Sequence[Any], sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
    """Go on from token ids."""
    from generators.text.prompts import decode_all

    assert isinstance(backend, Local)  # the method has checked
    made = backend.engine.generate(prompts, sampling, seeds)
    texts = decode_all(backend.tokenizer, [[] if isinstance(one, Failure) else one.token_ids for one in made])
    return [
        one
        if isinstance(one, Failure)
        else Answer(text, one.finish_reason, list(prompt), one.token_ids, one.logprobs, len(prompt), len(one.token_ids))
        for prompt, one, text in zip(prompts, made, texts, strict=True)
    ]


@cache
def template(name: str) -> Template:
    """A template that comes with Flywheel, by its path below generators/templates/, without the suffix."""
    file = files("generators").joinpath("templates", *f"{name}.jinja".split("/"))
    return Template(file.read_text(encoding="utf-8"), name)


def ask(name: str, sampling: Sampling, schema: dict[str, Any] | None = None, **values: Any) -> Ask:
    """A question rendered from the template `name`."""
    used = template(name)
    return Ask([user(used.render(values))], sampling, schema, used.digest)


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
        Rejected: it was cut off, or is empty.
    """
    if answer.finish_reason == "length":
        raise Rejected("cut_off", f"after {answer.tokens_out} tokens: {answer.text[-100:]!r}")
    if not answer.text.strip():
        raise Rejected("empty", "the model wrote nothing")
    return answer.text.strip()
