"""Conversations as people write them (OpenAI's messages with parts and tool calls, ShareGPT's, a text) as messages of ours."""

from __future__ import annotations

import re
from typing import Any, cast

from engine.reader.cells import Unfit, brief, missing, parse_json, spelled, text

Message = dict[str, Any]

ROLES = {
    "human": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "ai": "assistant",
    "model": "assistant", "function_call": "assistant",
    "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool", "developer": "system",
}  # fmt: skip
SPEAKER, SAID = ("role", "from"), ("content", "value")
THOUGHT = ("reasoning_content", "reasoning", "thinking")
KNOWN = {*SPEAKER, *SAID, *THOUGHT, "tool_calls", "function_call", "tool_call_id", "name"}
TURN = re.compile(r"\n\n(Human|Assistant): ?")


def messages(value: Any, column: str, role: str | None = None) -> list[Message]:
    """The messages that a cell holds: a list of them, one, either as JSON text, or a text that somebody says.

    Args:
        role: who says a plain text; None where there has to be a list.

    Returns:
        messages with `role`, `content` and what else they have of `engine.store.schema.EXTRAS`; what of theirs is not understood
        stands under `other`.

    Raises:
        Unfit: it can't be read as a conversation.
    """
    if missing(value):
        raise Unfit("missing_column", column, "there is nothing in it")
    if isinstance(value, str):
        read = _json(value)
        if read is None:
            return _said(value, column, role)
        value = read
    if isinstance(value, dict) and isinstance(value.get("messages"), list):  # as OpenAI wraps a prompt
        value = value["messages"]
    if isinstance(value, dict):
        turn = cast(dict[str, Any], value)
        columns = {k: v for k, v in turn.items() if isinstance(v, list | tuple)}
        # Arrow and `datasets` may hold a list of messages as one object of lists.
        if columns.keys() & set(SPEAKER) and len({len(v) for v in columns.values()}) == 1 and len(columns) == len(turn):
            value = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
        else:
            value = [turn]
    if isinstance(value, list | tuple):
        turns = cast(list[Any], value)
        if not turns:
            raise Unfit("no_messages", column, "a conversation without a message")
        return [_message(turn, f"{column}[{i}]") for i, turn in enumerate(turns)]
    if role is not None:
        return _said(value, column, role)
    raise Unfit("bad_type", column, f"expected a list of messages, found {brief(value)}")


def transcript(value: str) -> list[Message] | None:
    r"""The messages of a text in which `\n\nHuman:` and `\n\nAssistant:` take turns, as in Anthropic's data; None for others."""
    pieces = TURN.split(value)
    if pieces[0].strip() or len(pieces) < 3:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]


def _json(value: str) -> Any:
    """Messages that are written as JSON text; None for a text of another sort."""
    if not re.match(r"\s*\[?\s*\{", value):
        return None
    try:
        read = parse_json(value)
    except (ValueError, RecursionError):
        return None
    turns = cast(list[Any], read if isinstance(read, list) else [read])
    speak = all(isinstance(turn, dict) and set(SPEAKER) & turn.keys() and KNOWN & turn.keys() for turn in turns)
    return turns if turns and speak else None


def _said(value: Any, column: str, role: str | None) -> list[Message]:
    if role is None:
        raise Unfit("bad_type", column, f"expected a list of messages, found {brief(value)}")
    return [{"role": role, "content": text(value, column)}]


def _message(turn: Any, column: str) -> Message:
    if not isinstance(turn, dict):
        raise Unfit("bad_message", column, f"expected a message with `role` and `content`, found {brief(turn)}")
    given = {str(key): value for key, value in cast(dict[Any, Any], turn).items() if value is not None}
    who = next((given[name] for name in SPEAKER if name in given), None)
    if not isinstance(who, str) or not who.strip():
        raise Unfit(
            "bad_message", column, f"expected a `role`; it has {', '.join(f'`{key}`' for key in given) or 'nothing'}"
        )
    spoken = who.strip().lower()
    made: Message = {"role": ROLES.get(spoken, spoken), "content": None}
    if "tool_calls" in given or "function_call" in given:
        made["tool_calls"] = _calls(given.get("tool_calls") or [given["function_call"]], column)
    said = next((given[name] for name in SAID if name in given), None)
    if spoken == "function_call":
        made["tool_calls"], said = _calls(said, column), None
    for name in THOUGHT:
        if name in given:
            made["reasoning_content"] = text(given[name], f"{column}.{name}")
    for name in ("tool_call_id", "name"):
        if name in given:
            made[name] = text(given[name], f"{column}.{name}")
    if "tool_calls" in made and not made["tool_calls"]:
        del made["tool_calls"]
    if said is None and "tool_calls" not in made:
        raise Unfit("no_content", column, f"the {made['role']} says nothing: there is no `content`")
    made["content"] = None if said is None else _content(said, f"{column}.content")
    if other := {name: value for name, value in given.items() if name not in KNOWN and value not in ([], {}, "")}:
        weight = next((other[name] for name in ("weight", "train", "loss", "trainable") if name in other), None)
        if weight in (0, False, "0", "false"):
            told = "it is marked not to be learnt; a conversation is learnt with all that the assistant says in it"
            raise Unfit("unlearnt_turn", column, told)
        made["other"] = other
    return made


def _content(said: Any, column: str) -> str:
    """What is said: a text, or parts of text put end to end."""
    if not isinstance(said, list):
        return text(said, column) or ""
    told: list[str] = []
    for i, part in enumerate(cast(list[Any], said)):
        if isinstance(part, dict):
            kind = str(part.get("type", "text"))
            if kind not in ("text", "input_text", "output_text") or "text" not in part:
                raise Unfit("not_text", f"{column}[{i}]", f"a part of type `{kind}`; only text is taken")
            part = part["text"]
        told.append(text(part, f"{column}[{i}]") or "")
    return "".join(told)


def _calls(given: Any, column: str) -> str:
    """Tool calls as JSON: OpenAI's, the bare `{name, arguments}` of others, or either as text."""
    if isinstance(given, str):
        try:
            given = parse_json(given)
        except (ValueError, RecursionError):
            raise Unfit("tool_calls", column, f"expected a call as JSON, found {brief(given)}") from None
    calls: list[dict[str, Any]] = []
    for call in cast(list[Any], given if isinstance(given, list) else [given]):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unfit("tool_calls", column, f"expected a call with a `name` and `arguments`, found {brief(call)}")
        inner = cast(dict[str, Any], function)
        outer = {
            key: value
            for key, value in cast(dict[str, Any], call).items()
            if key in ("id", "type") and value is not None
        }
        arguments = inner.get("arguments", inner.get("parameters", {}))
        calls.append(
            {"type": "function", **outer, "function": {"name": inner["name"], "arguments": _arguments(arguments)}}
        )
    return spelled(calls)


def _arguments(given: Any) -> Any:
    """Arguments as an object, which is what templates are given; text that is none stays text."""
    try:
        return parse_json(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return given
