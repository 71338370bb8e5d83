"""A server that sends what it likes: each bad answer is one row with its reason, the others are answered, and nothing bad is kept."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from engine.plan.recipe import load_recipe
from engine.stage.preflight import Preflight
from generators.backends.protocol import Answer, Failure, Sampling
from generators.backends.server.chat_completions import ServerBackend
from generators.backends.server.checked_answer import BadAnswer, akin, answer_of
from generators.backends.server.delivery import retry_after
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from tests.generators.faulty_server import FaultyServer, said

SAMPLING = Sampling(logprobs=False)
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
HEAD = '{"id": "x", "model": "m", "usage": {"prompt_tokens": 10, "completion_tokens": 5}, "choices": [{"index": 0, "finish_reason": "stop"'


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def body(**more: Any) -> dict[str, Any]:
    """An answer, with other fields of the body, or (by these names) of its choice or message."""
    message = {"role": "assistant", "content": "fine"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    for name in [name for name in more if name in ("role", "content", "tool_calls", "reasoning_content")]:
        message[name] = more.pop(name)
    for name in [name for name in more if name in ("index", "finish_reason", "message", "logprobs", "token_ids")]:
        choice[name] = more.pop(name)
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": USAGE, **more}


def choice(index: Any, content: str) -> dict[str, Any]:
    return {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}


def logprobs(*values: Any) -> dict[str, Any]:
    return {"content": [{"token": "a", "logprob": value} for value in values]}


BAD: dict[str, tuple[Any, str]] = {
    "surrogate": (body(content="ab\ud800"), "half of a surrogate pair at character 2"),
    "surrogate in a thought": (body(reasoning_content="\udfff"), "half of a surrogate pair"),
    "surrogate in a call": (
        body(tool_calls=[{"function": {"name": "f", "arguments": "\ud800"}}]), "`tool_calls` has half of a surrogate"
    ),
    "NUL": (body(content="a\0b"), "NUL at character 1"),
    "deep": (HEAD.encode() + b', "message": ' + b"[" * 100_000, "nested too deeply"),
    "deep and whole": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "long number": (b'{"usage": ' + b"9" * 1_000_000 + b"}", "no JSON"),
    "HTML": (b"<html><body>It works!</body></html>", "it is HTML"),
    "stream": (b'data: {"choices": []}\n\ndata: [DONE]\n\n', "a stream, which was not asked for"),
    "nothing": (b"", "no JSON"),
    "half": (b'{"choices": [{"message"', "no JSON"),
    "Latin-1": ('{"choices": "\xe9"}'.encode("latin-1"), "no JSON"),
    "UTF-16": (json.dumps(body()).encode("utf-16"), "no JSON"),
    "a list": (b"[]", "expected an object, found a list"),
    "an error": ({"error": {"message": "overloaded"}}, "it is an error: .*overloaded"),
    "no choices": (body(choices=[]), "expected one choice with `index` 0, found none"),
    "choices as text": (body(choices="yes"), "`choices` should be a list"),
    "null in choices": (body(choices=[None]), "`choices` should be a list of objects"),
    "another choice": (body(index=1), "found those with 1"),
    "a choice that is false": (body(index=False), "found those with False"),
    "a choice twice": (body(choices=[choice(0, "a"), choice(0, "b")]), "found those with 0, 0"),
    "choices without index": (body(choices=[choice(None, "a"), choice(None, "b")]), "found those with None, None"),
    "no message": (body(message=None), "`message` should be an object"),
    "parts": (body(content=[{"type": "text", "text": "hi"}]), "`content` should be text, found a list"),
    "a number": (body(content=7), "`content` should be text, found 7"),
    "null": (body(content=None), "`content` should be text, found None"),
    "the user": (body(role="user"), "the assistant was asked, and 'user' answers"),
    "broken off": (body(finish_reason="error"), "broken off"),
    "a call without a name": (body(tool_calls=[{"function": {}}]), "a call of a tool"),
    "a call that is text": (body(tool_calls="f()"), "a call of a tool"),
    "a call's arguments": (body(tool_calls=[{"function": {"name": "f", "arguments": 7}}]), "a call of a tool"),
    "NaN": (json.dumps(body(logprobs=logprobs(float("nan")))).encode(), "number up to 0, found nan"),
    "minus infinity": (json.dumps(body(logprobs=logprobs(float("-inf")))).encode(), "number up to 0, found -inf"),
    "above 0": (body(logprobs=logprobs(0.5)), "number up to 0, found 0.5"),
    "true": (body(logprobs=logprobs(True)), "number up to 0, found True"),
    "too few log-probabilities": (body(logprobs=logprobs(-1.0), token_ids=[1, 2]), "1 log-probabilities for 2 tokens"),
    "too many log-probabilities": (body(logprobs=logprobs(*[-1.0] * 6)), "6 log-probabilities for 5 tokens"),
    "ids below 0": (body(token_ids=[1, -2]), "`token_ids` should be a list of token ids"),
    "a model that is none": (body(model=7), "`model` should be a name"),
}  # fmt: skip


def garbled(body: dict[str, Any]) -> tuple[int, str, bytes] | None:
    name = body["messages"][-1]["content"]
    if name not in BAD:
        return None
    sent = BAD[name][0]
    return 200, "", sent if isinstance(sent, bytes) else json.dumps(sent).encode()


@pytest.fixture
def backend_of(tmp_path: Path) -> Iterator[Callable[..., ServerBackend]]:
    opened = list[ServerBackend]()

    def open_one(url: str, say: Callable[[str], None] = lambda text: None, **more: Any) -> ServerBackend:
        settings = ServerSettings.model_validate({"model": "m", "url": url, "attempts": 1, **more})
        opened.append(ServerBackend(settings, tmp_path / "answers.sqlite", "me", say=say))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


def test_each_bad_answer_is_one_row_with_its_reason_and_is_not_kept(backend_of: Any) -> None:
    asked = [*map(ask, BAD), ask("a good one")]
    with FaultyServer(share=0, garble=garbled) as server:
        backend = backend_of(server.url)
        *bad, good = backend.complete(asked, SAMPLING, range(len(asked)))
        for name, answer in zip(BAD, bad, strict=True):
            assert isinstance(answer, Failure) and answer.reason == "server_failed", name
            with pytest.raises(AssertionError, match=BAD[name][1]):
                raise AssertionError(answer.detail)
            answer.detail.encode()
        assert isinstance(good, Answer) and good.text == said(asked[-1], len(BAD))
        paid = sum(isinstance(sent, dict) and "choices" in sent and bool(sent["choices"]) for sent, _ in BAD.values())
        assert backend.usage.tokens_out >= 5 * (paid - 8)  # what is no use is paid for all the same
        server.garble = lambda body: None
        again = backend.complete(asked, SAMPLING, range(len(asked)))
    assert [a.text for a in again if isinstance(a, Answer)] == [said(m, i) for i, m in enumerate(asked)]


def test_what_is_odd_and_no_fault_is_taken() -> None:
    def text(**more: Any) -> str:
        made = answer_of(body(**more), {"model": "m", "max_tokens": 64})
        assert isinstance(made, Answer)
        return made.text

    assert text(choices=[choice(1, "b"), choice(0, "a")]) == "a"  # in whatever order
    assert text(content="\x1b[31mred\x07 \u202etxt \x7f") == "\x1b[31mred\x07 \u202etxt \x7f"  # text, if odd
    assert text(content="\U0001f600 \U00010000") == "\U0001f600 \U00010000"
    assert text(index=None) == text(model=None) == text(role=None) == "fine"
    calls = answer_of(
        body(content=None, tool_calls=[{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]), {}
    )
    assert isinstance(calls, Answer) and json.loads(calls.calls)[0]["function"]["arguments"] == '{"a": 1}'
    near = answer_of(body(token_ids=[1, 2], logprobs=logprobs(1e-7, -0.5)), {})
    assert isinstance(near, Answer) and near.logprobs == [0.0, -0.5]


@pytest.mark.parametrize(
    "usage",
    [
        None, "many", {}, {"prompt_tokens": 10}, {**USAGE, "completion_tokens": -80_000_000_000},
        {**USAGE, "prompt_tokens": 10**30}, {**USAGE, "prompt_tokens": True}, {**USAGE, "completion_tokens": 5.5},
        {**USAGE, "completion_tokens": 0}, {**USAGE, "prompt_tokens": 0}, {**USAGE, "completion_tokens": 10**6},
        {**USAGE, "completion_tokens": None},
    ],
)  # fmt: skip
def test_without_usage_that_can_be_tokens_are_counted_here(usage: Any) -> None:
    told = list[str]()
    request = {"model": "m", "max_tokens": 64, "messages": ask("q" * 4000)}
    made = answer_of(body(content="a" * 400, usage=usage), request, lambda about, text: told.append(text))
    assert isinstance(made, Answer) and made.tokens_out in (5, 100) and made.tokens_in in (10, *range(1000, 1030))
    assert (made.tokens_in, made.tokens_out) != (10, 5)
    assert len(told) == 1 and "it is counted here, a token for 4 bytes" in told[0]


def test_tokens_that_a_model_thought_with_are_believed() -> None:
    usage = {**USAGE, "completion_tokens": 5000, "completion_tokens_details": {"reasoning_tokens": 4900}}
    made = answer_of(body(usage=usage), {"model": "m", "max_tokens": 64, "messages": ask("?")})
    assert isinstance(made, Answer) and made.tokens_out == 5000


@pytest.mark.parametrize("usage", [None, {**USAGE, "completion_tokens": -(10**9)}])
def test_a_budget_ends_a_stage_whatever_the_server_says_of_its_usage(backend_of: Any, usage: Any) -> None:
    said = (200, "", json.dumps(body(content="four" * 25, usage=usage)).encode())
    asked = [ask(f"{i} " + "word" * 10) for i in range(200)]
    with FaultyServer(share=0, garble=lambda body: said) as server:
        told = list[str]()
        backend = backend_of(server.url, told.append, budget_tokens=2000, concurrency=4)
        with pytest.raises(StageFailed, match="the budget is spent"):
            backend.complete(asked, SAMPLING, range(200))
    assert 2000 <= sum((backend.usage.tokens_in, backend.usage.tokens_out)) < 2500
    assert len(told) == 1 and "`usage`" not in told[0] and "counted here" in told[0]


def test_another_name_of_the_model_is_told_once_and_noted(backend_of: Any) -> None:
    names = iter(["m-2024-08-06", "other", "other", "m"])
    told = list[str]()
    with FaultyServer(share=0, garble=lambda _: (200, "", json.dumps(body(model=next(names))).encode())) as server:
        backend = backend_of(server.url, told.append)
        for i in range(4):
            backend.complete([ask(str(i))], SAMPLING, [i])
        assert backend.usage.answered_as == "m-2024-08-06, other"
    assert len(told) == 1 and "asked for `m`, the server answers as `other`" in told[0]
    for asked, name in (
        ("gpt-4o", "gpt-4o-2024-08-06"), ("openai/gpt-4o", "gpt-4o"), ("qwen3-8b", "/models/Qwen3-8B"),
        ("llama3", "llama3:latest"), ("models/tiny.gguf", "tiny"), ("a/b:cheapest", "a/b"),
    ):  # fmt: skip
        assert akin(asked, name)
    assert not akin("gpt-4o", "gpt-3.5-turbo") and not akin("m", "/")


@pytest.mark.parametrize(
    ("headers", "sent", "reason"),
    [
        ("", b'{"a": "' + b"x" * 5_000_000, "more than 4,0"),
        ("content-encoding: gzip\r\n", gzip.compress(b" " * 50_000_000), "more than 4,0"),
        ("content-encoding: br\r\n", b"x", "packed as `br`"),
        ("content-encoding: gzip\r\n", b"no gzip", "can't be unpacked"),
        ("x: " + "y" * 300_000 + "\r\n", b"{}", "the connection broke"),
    ],
)
@pytest.mark.parametrize("status", [200, 500])
def test_no_more_is_read_than_an_answer_may_have(
    backend_of: Any, headers: str, sent: bytes, reason: str, status: int
) -> None:
    with FaultyServer(share=0, garble=lambda body: (status, headers, sent)) as server:
        (answer,) = backend_of(server.url).complete([ask("?")], SAMPLING, [0])
        assert isinstance(answer, Failure) and reason in answer.detail
        server.garble = lambda body: (200, "content-encoding: gzip\r\n", gzip.compress(json.dumps(packed).encode()))
        packed = body(content="packed")
        (answer,) = backend_of(server.url).complete([ask("!")], SAMPLING, [0])
        assert isinstance(answer, Answer) and answer.text == "packed"


def test_waits_are_bounded_and_told(backend_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generators.backends.server.delivery.LONGEST_ASKED", 0.05)
    waits = iter(["1e400", "2000000", "Fri, 31 Dec 9999 23:59:59 GMT", "nan", "-5"])

    def busy(body: dict[str, Any]) -> tuple[int, str, bytes] | None:
        wait = next(waits, None)
        return (429, f"retry-after: {wait}\r\n", b"{}") if wait else None

    told = list[str]()
    with FaultyServer(share=0, garble=busy) as server:
        (answer,) = backend_of(server.url, told.append, attempts=6).complete([ask("?")], SAMPLING, [0])
    assert isinstance(answer, Answer)
    assert told == ["The server asks to wait for ever (429); it is asked again after 0 seconds."]
    assert retry_after({"retry-after": "nan"}) is None and retry_after({"retry-after": "-5"}) == 0
    assert retry_after({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}) is None


def test_prompts_and_keys_are_sent_to_no_other_server(backend_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-that-must-not-travel")
    with FaultyServer(share=0) as other, FaultyServer(share=0) as server:
        there = other.url + "/chat/completions"
        server.garble = lambda body: (307, f"location: {there}\r\n", b"")
        with pytest.raises(
            UserError, match=rf"{server.url[:-3]} sends requests on to {other.url[:-3]} \(307\)\. Prompts"
        ):
            backend_of(server.url).complete([ask("a"), ask("b")], SAMPLING, [0, 1])
        assert not other.served
        moved = iter([(307, "location: /v1/elsewhere\r\n", b"")])
        server.garble = lambda body: next(moved, None)
        (answer,) = backend_of(server.url).complete([ask("c")], SAMPLING, [0])
        assert isinstance(answer, Answer)  # on the same server it is followed
    head = f"HTTP/1.1 302 X\r\nlocation: {there}\r\ncontent-length: 0\r\n\r\n".encode()
    with _answering(head) as url, pytest.raises(UserError, match="sends requests on to"):
        check_servers(Preflight(), ServerSettings(model="m", url=url))


def test_a_server_is_not_waited_for_that_sends_its_head_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generators.backends.server.reachable.PATIENCE", 0.3)
    slow = pytest.raises(UserError, match=r"does not answer within 0\.3 s")
    with _answering(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1000, pause=0.1) as url, slow:
        check_servers(Preflight(), ServerSettings(model="m", url=url))


def test_a_key_that_a_server_sends_back_is_not_told(backend_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN", "correct-horse-battery")
    sent = json.dumps({"error": {"message": "no such key: correct-horse-battery \ud800\x1b[31m"}}).encode()
    with FaultyServer(share=0) as server:
        server.garble = lambda body: (401, "", sent)
        with pytest.raises(UserError, match=r"refuses the key in \$MY_OWN \(401\): .*\[hidden\]") as told:
            backend_of(server.url, key="MY_OWN").complete([ask("a")], SAMPLING, [0])
        server.garble = lambda body: (200, "", sent)
        (answer,) = backend_of(server.url, key="MY_OWN").complete([ask("a")], SAMPLING, [0])
    for words in (str(told.value), answer.detail):
        assert "correct-horse" not in words and "\x1b" not in words and "\ud800" not in words


def test_a_secret_in_a_url_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for url in ("http://ann:hunter22@host/v1", "https://host/v1?api_key=hunter22&v=1", "http://hunter22@host/v1"):
        with pytest.raises(ValidationError, match="environment variable that `key` names") as told:
            ServerSettings(model="m", url=url)
        assert "hunter22" not in str(told.value.errors()[0]["msg"])
        stage = {"kind": "candidates", "from": {"prompts": "./p"}, "n": 1, "server": {"model": "m", "url": url}}
        (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "stages": {"c": stage}}))
        with pytest.raises(UserError, match=r"`server\.url` holds a (password|secret|token|key)") as unread:
            load_recipe(tmp_path / "r.yaml")
        assert "hunter22" not in str(unread.value)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(UserError, match=r"\$OPENAI_BASE_URL is .*\[hidden\]") as refused:
            check_servers(Preflight(), ServerSettings(model="m"))
        assert "hunter22" not in str(refused.value)
    ServerSettings(model="m", url="https://host/openai?api-version=2024-06-01")


def test_words_of_a_bad_answer_are_short() -> None:
    with pytest.raises(BadAnswer) as told:
        answer_of(body(role="x" * 10**6), {})
    assert len(str(told.value)) < 300


class _answering:
    """A server that sends these bytes to whoever connects, byte by byte if there is a pause."""

    def __init__(self, data: bytes, pause: float = 0.0) -> None:
        self.data, self.pause, self.done = data, pause, threading.Event()

    def __enter__(self) -> str:
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self.server.getsockname()[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.server.close()

    def _serve(self) -> None:
        connection, _ = self.server.accept()
        with connection:
            connection.recv(65_536)
            for piece in [self.data] if not self.pause else [bytes([one]) for one in self.data]:
                if self.done.wait(self.pause):
                    return
                connection.sendall(piece)
            self.done.wait(5)
