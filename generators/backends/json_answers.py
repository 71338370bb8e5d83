"""Answers that are JSON and follow a schema: enforced while they are sampled, checked after, repaired once.

Enforcing is the engine's (guided decoding); an answer can still be cut off by `max_tokens`, or come from a server that
only promises.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for

from engine import seeds
from generators.backends.protocol import Answer, Backend, Failure, Sampling
from generators.text.prompts import Message

REPAIR = "That is not a valid answer: {problem}. Answer again, with nothing but JSON that follows the schema: {schema}"


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """For pydantic validators: the schema, if it is one.

    Raises:
        ValueError: it is not JSON Schema (2020-12, unless it names another draft).
    """
    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise ValueError(f"this is not a JSON Schema: at {where}: {error.message}") from None
    return schema


def problem(text: str, schema: dict[str, Any]) -> str | None:
    """What is wrong with an answer, in one line; None if it follows the schema."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"it is not JSON ({error.msg} at character {error.pos} of {len(text)})"
    validator = validator_for(schema, Draft202012Validator)(schema)
    if error := best_match(validator.iter_errors(value)):
        return f"at {'/'.join(map(str, error.absolute_path)) or 'the top'}: {error.message}"[:300]
    return None


def complete(
    backend: Backend,
    conversations: list[list[Message]],
    sampling: Sampling,
    seeds_: list[int],
    schema: dict[str, Any],
) -> tuple[list[Answer | Failure], set[int]]:
    """As `Backend.complete`, with every answer following the schema, and the positions of those that were repaired.

    An answer that does not is shown to the model with what is wrong, once; if the second does not either, it is a
    `Failure("invalid_json", ...)`, and both are forgotten. A refusal is an answer, and stays what it is.
    """
    guided = replace(sampling, json_schema=json.dumps(schema, sort_keys=True))
    answers = backend.complete(conversations, guided, seeds_)
    wrong = {
        i: why
        for i, answer in enumerate(answers)
        if isinstance(answer, Answer) and not answer.refused and (why := problem(answer.text, schema))
    }
    asked = list[list[Message]]()
    for i, why in wrong.items():
        answer = answers[i]
        assert isinstance(answer, Answer)
        ask = REPAIR.format(problem=why, schema=json.dumps(schema))
        asked.append([
            *conversations[i], {"role": "assistant", "content": answer.text}, {"role": "user", "content": ask},
        ])  # fmt: skip
    again = backend.complete(asked, guided, [seeds.derive("repair", seeds_[i]) for i in wrong]) if wrong else []
    repaired, useless = set[int](), list[Answer | Failure]()
    for (i, why), answer in zip(wrong.items(), again, strict=True):
        if isinstance(answer, Answer) and not problem(answer.text, schema):
            answers[i] = answer
            repaired.add(i)
        else:
            useless += [answers[i], answer]
            cut = isinstance(first := answers[i], Answer) and first.finish_reason == "length"
            more = ": `max_tokens` cut it off, raise it" if cut else ""
            answers[i] = Failure("invalid_json", f"{why}{more}; and no better after asking to repair it")
    backend.forget(answer for answer in useless if isinstance(answer, Answer))
    return answers, repaired
