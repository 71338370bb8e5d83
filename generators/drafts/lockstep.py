"""Many drafts in lockstep: what all of them ask next is one batch of the engine.

The seed of a question is derived from the draft's number and the step, so the rows do not depend on how drafts are
batched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import UserError
from generators.backends import json_answers
from generators.backends.local_model import Local
from generators.backends.protocol import Answer, Backend, Failure
from generators.drafts.content import fault
from generators.drafts.drafts import Draft, Execution, Made, Query, Rejected, Request, Useless, user
from generators.rules.sandbox.programs import Outcome, Unsafe, together
from generators.text.templates import Template, Unrenderable, template


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


def carry(
    backend: Backend,
    drafts: Sequence[tuple[int, Draft]],
    derive: Callable[..., int],
    templates: Mapping[str, Template] | None = None,
) -> list[Line]:
    """Run numbered drafts to their ends. Returns a line for each result, in the order of the drafts.

    Args:
        derive: the seed for a path and a step (`Job.derive`).
        templates: prompt -> a template that takes the place of the one that comes with it.
    """
    going = [Line((number,), draft) for number, draft in drafts]
    replies: list[Answer | Failure | Outcome | None] = [None] * len(going)
    ended = list[Line]()
    while going:
        steps, useless = list[tuple[Line, Query | Execution]](), list[Answer]()
        for line, reply in zip(going, replies, strict=True):
            _step(line, reply, steps, ended, templates or {}, useless)
        backend.forget(useless)
        going = [line for line, _ in steps]
        queries = [(index, line, step) for index, (line, step) in enumerate(steps) if isinstance(step, Query)]
        for _, line, step in queries:
            line.seeds.append(derive("draft", *line.path, len(line.seeds)))
            if step.template and step.template not in line.templates:
                line.templates.append(step.template)
        answers = _answers(backend, [step for _, _, step in queries], [line.seeds[-1] for _, line, _ in queries])
        for (_, line, _), answer in zip(queries, answers, strict=True):
            if isinstance(answer, Answer):
                line.tokens = (line.tokens[0] + answer.tokens_in, line.tokens[1] + answer.tokens_out)
        runs = [(index, step) for index, (_, step) in enumerate(steps) if isinstance(step, Execution)]
        results: dict[int, Any] = dict(zip([index for index, _, _ in queries], answers, strict=True))
        try:
            outcomes = together([step.carried_out for _, step in runs])
        except Unsafe as error:
            raise UserError(f"this method runs what a model wrote, and {error}") from error
        results.update(zip([index for index, _ in runs], outcomes, strict=True))
        replies = [results[index] for index in range(len(steps))]
    return sorted(ended, key=lambda line: line.path)


def _step(
    line: Line,
    reply: Any,
    steps: list[tuple[Line, Query | Execution]],
    ended: list[Line],
    templates: Mapping[str, Template],
    useless: list[Answer],
) -> None:
    """Let a draft go on to its next step, its end, or the drafts it ends in; `useless` takes an answer that was none."""
    try:
        if isinstance(reply, Failure):
            line.draft.close()
            raise Rejected(reply.reason, reply.detail, failed=True)
        if isinstance(reply, Answer) and (refused := reply.refused):
            line.draft.close()
            raise Rejected(refused.reason, refused.detail)
        try:
            asked = next(line.draft) if reply is None else line.draft.send(reply)
        except StopIteration as end:
            made: Made | Sequence[Draft] = end.value
        else:
            steps.append((line, _rendered(line, asked, templates) if isinstance(asked, Request) else asked))
            return
        if isinstance(made, Made):
            check_answers(made)
            line.result = made
            ended.append(line)
            return
        for place, draft in enumerate(made):
            tokens = (0, 0) if place else line.tokens
            child = Line((*line.path, place), draft, list(line.seeds), list(line.templates), tokens)
            _step(child, None, steps, ended, templates, useless)
    except Rejected as error:
        if isinstance(error, Useless):
            useless += error.answers or ([reply] if isinstance(reply, Answer) else [])
        line.result = error
        ended.append(line)


def _rendered(line: Line, asked: Request, templates: Mapping[str, Template]) -> Query:
    """The question, as it is asked.

    Raises:
        Rejected: the recipe's template asks for what the values have not.
    """
    used = templates.get(asked.prompt) or template(asked.prompt)
    try:
        text = used.render(asked.values)
    except Unrenderable as error:
        line.draft.close()
        raise Rejected("unrenderable", str(error), failed=True) from None
    return Query([user(text)], asked.sampling, asked.schema, used.digest)


def check_answers(made: Made) -> None:
    """Look whether every answer in a row says something, and something else than it was asked.

    Raises:
        Useless: one does not.
    """
    asked = ""
    for message in made.messages:
        if message["role"] == "user":
            asked = message["content"]
        said = message["role"] == "assistant" and not message.get("tool_calls")
        if said and (found := fault(message["content"], asked)):
            raise Useless(*found)


def _answers(backend: Backend, queries: Sequence[Query], seeds: Sequence[int]) -> list[Answer | Failure]:
    """Answers in order; one batch for each way of sampling."""
    groups: dict[Any, list[int]] = {}
    for index, query in enumerate(queries):
        kind = "ids" if isinstance(query.messages, tuple) else json.dumps(query.schema) if query.schema else ""
        groups.setdefault((query.sampling, kind), []).append(index)
    answers = dict[int, Answer | Failure]()
    for (sampling, kind), chosen in groups.items():
        own, schema = [seeds[index] for index in chosen], queries[chosen[0]].schema
        prompts: list[Any] = [list(queries[index].messages) for index in chosen]
        if kind == "ids":
            assert isinstance(backend, Local)  # the method has checked
            batch = backend.sample(prompts, sampling, own)
        elif schema:
            batch, _ = json_answers.complete(backend, prompts, sampling, own, schema)
        else:
            batch = backend.complete(prompts, sampling, own)
        answers.update(zip(chosen, batch, strict=True))
    return [answers[index] for index in range(len(queries))]
