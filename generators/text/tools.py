"""Calls of tools in messages, as rows hold them and as chat templates take them.

A template takes a call as `{"type": "function", "function": {"name": ..., "arguments": {...}}}` (transformers' page "Tool use").
What it makes of one differs widely (JSON, XML, Python), so whether it has rendered a call is told by the names and values in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast


class Malformed(ValueError):
    """Calls or tools that are none, in words."""


def tools_of(column: str | list[Any] | None) -> list[dict[str, Any]]:
    """The tools of a row: definitions as templates take them.

    Args:
        column: JSON text of a list, or that list; of functions, each alone or under `function`.

    Raises:
        Malformed: it is no such list.
    """
    tools = _parsed(column, "`tools`") if isinstance(column, str) else column
    if tools is not None and not isinstance(tools, list):
        raise Malformed(f"`tools` is {_shown(tools)}, expected a list of functions")
    return [{"type": "function", "function": _function(tool, "a tool")} for tool in tools or []]


def calls_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of a message, each with its arguments as an object.

    Raises:
        Malformed: one has no name, or arguments that are no object.
    """
    given = message.get("tool_calls")
    given = _parsed(given, "`tool_calls`") if isinstance(given, str) else given
    if given is not None and not isinstance(given, list):
        raise Malformed(f"`tool_calls` is {_shown(given)}, expected a list of calls")
    calls: list[dict[str, Any]] = []
    for call in cast(list[Any], given or []):
        function = _function(call, "a call")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"the arguments of `{function['name']}`")
        if not isinstance(arguments, dict):
            raise Malformed(f"the arguments of `{function['name']}` are {_shown(arguments)}, expected an object")
        outer = {k: v for k, v in cast(dict[str, Any], call).items() if k not in ("function", "name", "arguments")}
        calls.append({**outer, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def as_text(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same calls with their arguments as JSON, for templates (and servers) that take text."""
    return [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in calls
    ]  # fmt: skip


def sent(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as OpenAI's API takes it: with its calls as a list, their arguments as text.

    Raises:
        Malformed: its calls are none.
    """
    calls = as_text(calls_of(message))
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "tool_calls": calls} if calls else rest


def missing(calls: list[dict[str, Any]], text: str) -> str | None:
    """The first name or value of these calls that a text does not have."""
    for call in calls:
        function = call["function"]
        for value in (function["name"], *_leaves(function["arguments"])):
            if not holds(text, value):
                return str(value)
    return None


def holds(text: str, value: Any) -> bool:
    """Whether a text has a value in it: as it is, or as JSON or Python write it."""
    written = {str(value), json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value)}
    plain = {one[1:-1] for one in written if len(one) > 1 and one[0] == one[-1] and one[0] in "\"'"}
    dense = "".join(text.split())
    return any("".join(one.split()) in dense for one in {*written, *plain})


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, one in cast(dict[str, Any], value).items():
            yield key
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in cast(list[Any], value):
            yield from _leaves(one)
    elif value is not None:
        yield value


def _function(value: Any, what: str) -> dict[str, Any]:
    """A function with its name: the value itself, or what is under `function` in it."""
    inner = cast(dict[str, Any], value).get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(cast(dict[str, Any], inner).get("name"), str):
        raise Malformed(f"{what} is {_shown(value)}, expected a function with a name")
    return cast(dict[str, Any], inner)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Malformed(f"{what} should be JSON, found {_shown(text)}") from error


def _shown(value: Any) -> str:
    return repr(value)[:80]
