"""What a server has read out of an answer (calls of tools, a thought), and how it is told of tools."""

from __future__ import annotations

import json

from generators.backends.protocol import Answer, Sampling
from generators.backends.server.chat_completions import request_of
from generators.backends.server.checked_answer import answer_of
from generators.backends.server.settings import ServerSettings

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}


def test_calls_and_thoughts_of_an_answer_are_kept_apart_from_it() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Ask the tool."}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    answer = answer_of(body, {})
    assert isinstance(answer, Answer) and (answer.text, answer.thought) == ("", "Ask the tool.")
    assert json.loads(answer.calls) == [CALL]


def test_a_thought_that_a_server_leaves_in_the_answer_is_told_from_it() -> None:
    def said(text: str, ended: str = "stop") -> tuple[str, str]:
        choice = {"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": text}}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        answer = answer_of(body, {})
        return (answer.thought, answer.text) if isinstance(answer, Answer) else (answer.reason, "")

    assert said("<think>\nHm.\n</think>\n\nLima.") == ("Hm.", "Lima.")
    assert said("<think>\n\n</think>\n\nLima.") == ("", "Lima.")
    assert said("Lima, and <think> is a tag.") == ("", "Lima, and <think> is a tag.")
    assert said("<think>Hm, or", "length") == ("empty_answer", "")  # it was still thinking


def test_a_server_is_told_of_tools_and_calls_as_its_api_has_them() -> None:
    """Rows hold calls as JSON text, with arguments as an object or as text."""
    call = {**CALL, "function": {"name": "weather", "arguments": {"city": "Lima"}}}
    for held in (json.dumps([CALL]), json.dumps([call])):
        asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": held}]
        settings = ServerSettings.model_validate({"model": "m", "url": "http://127.0.0.1:1"})
        request = request_of(settings, asked, Sampling(tools='[{"name": "weather"}]'), 0)
        assert request["messages"][1]["tool_calls"] == [CALL] and request["messages"][0] == asked[0]
        assert request["tools"] == [{"type": "function", "function": {"name": "weather"}}]
    assert "tools" not in request_of(settings, asked[:1], Sampling(), 0)
