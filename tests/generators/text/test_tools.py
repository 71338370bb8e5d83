"""Calls of tools in rows, whatever of the ways of writing them people use, and whether a text holds them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from generators.text.tools import Malformed, calls_of, missing, sent, tools_of

WEATHER = {"name": "weather", "arguments": {"city": "Lima"}}


@pytest.mark.parametrize(
    "written",
    [
        [{"id": "c1", "type": "function", "function": WEATHER}],
        [{"id": "c1", "function": {**WEATHER, "arguments": json.dumps(WEATHER["arguments"])}}],
        [{"id": "c1", **WEATHER}],
        json.dumps([{"id": "c1", "function": WEATHER}]),
    ],
)
def test_calls_are_read_as_people_write_them(written: Any) -> None:
    (call,) = calls_of({"role": "assistant", "content": "", "tool_calls": written})
    assert call == {"id": "c1", "type": "function", "function": WEATHER}
    (wire,) = sent({"role": "assistant", "content": "", "tool_calls": written})["tool_calls"]
    assert json.loads(wire["function"]["arguments"]) == WEATHER["arguments"]


def test_no_calls_are_none() -> None:
    for written in (None, [], "[]", "null"):
        assert calls_of({"tool_calls": written}) == []
    assert calls_of({}) == [] and tools_of(None) == [] and tools_of("[]") == []
    assert sent({"role": "user", "content": "a"}) == {"role": "user", "content": "a"}
    assert calls_of({"tool_calls": [{"name": "now", "arguments": ""}]})[0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{", "`tool_calls` should be JSON"),
        ('{"name": "a"}', "expected a list of calls"),
        ([{"function": "weather"}], "expected a function with a name"),
        (["weather"], "expected a function with a name"),
        ([{"name": "weather", "arguments": "city=Lima"}], "arguments of `weather` should be JSON"),
        ([{"name": "weather", "arguments": ["Lima"]}], "arguments of `weather` are"),
    ],
)
def test_what_is_no_call_is_said(written: Any, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        calls_of({"tool_calls": written})


def test_tools_are_read_alone_or_as_functions() -> None:
    tool = {"name": "weather", "parameters": {}}
    for written in ([tool], [{"type": "function", "function": tool}], json.dumps([tool])):
        assert tools_of(written) == [{"type": "function", "function": tool}]
    for wrong in ("weather", '{"name": "weather"}', '["weather"]', "3"):
        with pytest.raises(Malformed):
            tools_of(wrong)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "weather", "arguments": {"city": "S\\u00e3o \\"P\\"", "days": 3, "metric": true, "at": [1.5]}}',
        "weather(city='São \"P\"', days=3, metric=True, at=[1.5])",
        '<function=weather><parameter=city>\nSão "P"\n</parameter><parameter=days>3<parameter=metric>true<parameter=at>1.5',
    ],
)
def test_a_call_is_there_in_json_python_and_xml(text: str) -> None:
    arguments = {"city": 'São "P"', "days": 3, "metric": True, "at": [1.5]}
    calls = [{"function": {"name": "weather", "arguments": arguments}}]
    assert missing(calls, text) is None
    assert missing(calls, text.replace("weather", "")) == "weather"
    assert missing(calls, text.replace("1.5", "")) == "1.5"
