"""What a server says that is no use is paid for, told in words, and asked again the next time; a refusal is an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StageFailed
from generators.backends import json_answers
from generators.backends.protocol import Answer, Failure, Sampling, Usage
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.batch import read
from generators.backends.server.chat_completions import ServerBackend
from generators.backends.server.settings import ServerSettings
from generators.candidates.stage import Candidates
from tests.generators.faulty_server import FaultyServer

ASK = [[{"role": "user", "content": f"question {i}"}] for i in range(4)]
SAMPLING = Sampling(logprobs=False)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
PROMPTS = [{"id": f"{i:032x}", "parents": [], "prompt": ask} for i, ask in enumerate(ASK)]


def choice(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}


SAID = {
    "question 0": choice("fine"),
    "question 1": choice(None, refusal="I can't help with that."),
    "question 2": choice("half of it", "content_filter"),
    "question 3": choice(None, "length", reasoning_content="hm, let me see"),
}


@pytest.fixture
def backend_of(tmp_path: Path) -> Callable[[FaultyServer], ServerBackend]:
    return lambda server: ServerBackend(ServerSettings(model="m", url=server.url), tmp_path / "answers.sqlite")


def test_a_refusal_is_an_answer_and_nothing_at_max_tokens_is_none(backend_of: Any) -> None:
    with FaultyServer(share=0, answer=lambda messages, seed: SAID[messages[-1]["content"]]) as server:
        backend = backend_of(server)
        fine, refused, filtered, empty = backend.complete(ASK, SAMPLING, range(4))
        assert (fine.text, fine.finish_reason) == ("fine", "stop")
        assert (refused.text, refused.finish_reason) == ("I can't help with that.", "refusal")
        assert (filtered.text, filtered.finish_reason) == ("half of it", "content_filter")
        assert isinstance(empty, Failure) and empty.reason == "empty_answer"
        assert "nothing was said in 5 tokens" in empty.detail and "raise `max_tokens`" in empty.detail
        assert backend.usage == Usage(40, 20)  # paid for, all four
        backend.close()
        again = backend_of(server)
        assert again.complete(ASK, SAMPLING, range(4))[:3] == [fine, refused, filtered]
        assert again.usage == Usage(50, 25)  # the empty one alone was asked once more
        again.close()


def test_batches_read_answers_the_same_way() -> None:
    def line(choice: dict[str, Any]) -> dict[str, Any]:
        body = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, **choice}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }  # fmt: skip
        return {"response": {"status_code": 200, "body": body}}

    read_as = [read(line(SAID[f"question {i}"]), {}) for i in range(4)]
    assert [one.finish_reason for one in read_as if isinstance(one, Answer)] == ["stop", "refusal", "content_filter"]
    assert isinstance(read_as[3], Failure) and read_as[3].reason == "empty_answer" and read_as[3].tokens_out == 5


def test_what_is_not_the_json_asked_for_is_asked_again_and_the_rest_is_not(backend_of: Any) -> None:
    mood = {"good": False}

    def answer(messages: list[dict[str, str]], seed: int) -> Any:
        if messages[0]["content"] == "question 0" or mood["good"]:
            return f'{{"n": {seed}}}'
        if messages[0]["content"] == "question 1":  # wrong at first, mended when it is told
            return '{"n": 1}' if len(messages) > 1 else "not JSON"
        return SAID["question 1"] if messages[0]["content"] == "question 2" else "not JSON"

    with FaultyServer(share=0, answer=answer) as server:
        first = backend_of(server)
        answers, repaired = json_answers.complete(first, ASK, SAMPLING, [0, 1, 2, 3], SCHEMA)
        first.close()
        assert repaired == {1} and isinstance(answers[3], Failure) and answers[3].reason == "invalid_json"
        assert answers[2].refused == Failure("refusal", "I can't help with that.")  # nobody asks to repair it
        asked = len(server.served)
        assert asked == 4 + 2
        mood["good"] = True
        again = backend_of(server)
        answers, repaired = json_answers.complete(again, ASK, SAMPLING, [0, 1, 2, 3], SCHEMA)
        assert [json.loads(answers[i].text)["n"] for i in (0, 1, 3)] == [0, 1, 3] and repaired == {1}
        assert again.usage == Usage(10 * (asked + 1), 5 * (asked + 1))
        again.close()


def test_what_is_forgotten_stays_counted(tmp_path: Path) -> None:
    cache = AnswersCache(tmp_path / "a.sqlite", "me")
    kept = cache.put("r", Answer("x", "stop", None, None, None, 3, 4))
    assert cache.get("r") == kept and isinstance(kept, Answer)
    cache.forget([kept])
    assert cache.get("r") is None and cache.spent() == (3, 4)
    cache.put("r", Answer("y", "stop", None, None, None, 3, 5))
    cache.put("blank", Answer("", "stop", None, None, None, 1, 1))
    assert cache.get("blank") is None and cache.spent() == (7, 10)
    assert AnswersCache(tmp_path / "a.sqlite", "somebody else").spent() == (0, 0)


def test_candidates_keep_refusals_and_count_everybody_apart(given: Any, build: Any) -> None:
    with FaultyServer(share=0, answer=lambda messages, seed: SAID[messages[-1]["content"]]) as server:
        servers = [{"model": name, "url": server.url, "price_in": price} for name, price in (("a", 1e6), ("b", 2e6))]
        prompts = given("Prompt", PROMPTS)
        made = build(Candidates, {"prompts": prompts}, n=2, server=servers, logprobs=False)
        with pytest.raises(StageFailed, match=r"no row came out: empty_answer \(2\)"):
            build(Candidates, {"prompts": given("Prompt", PROMPTS[3:])}, n=2, server=servers, logprobs=False)
    assert made.manifest["summary"]["finish"] == {"content_filter": 2, "refusal": 2, "stop": 2}
    assert made.manifest["rejected"] == {"empty_answer": 2}
    rows = made.to_table().to_pylist()
    assert {r["completion"][0]["content"] for r in rows if r["finish_reason"] == "refusal"} == {
        "I can't help with that."
    }
    spent = made.manifest["timings"]["spent"]
    assert {n: (s["tokens_in"], s["tokens_out"], s["cost"]) for n, s in spent.items()} == {
        "a": (40, 20, 40.0), "b": (40, 20, 80.0),
    }  # fmt: skip
