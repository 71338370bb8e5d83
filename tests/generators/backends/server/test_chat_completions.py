"""The official client against a real local server that fails on purpose: every row exactly once, or with its reason."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import openai
import polars as pl
import pytest

from engine.errors import StageFailed, UserError
from generators.backends.protocol import Answer, Failure, Sampling, Usage
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.chat_completions import ServerBackend
from generators.backends.server.delivery import Delivery, retry_after
from generators.backends.server.settings import ServerSettings
from generators.candidates.stage import Candidates
from tests.generators.faulty_server import FAULTS, FaultyServer, said

PROMPTS = [
    {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"Say {i}!"}], "reference": str(i)}
    for i in range(120)
]
ASK = [[{"role": "user", "content": f"question {i}"}] for i in range(200)]
SAMPLING = Sampling(logprobs=False)


def server_of(faulty: FaultyServer, **more: Any) -> ServerSettings:
    return ServerSettings(model="m", url=faulty.url, **{"timeout_s": 5.0, **more})


def test_every_row_is_answered_exactly_once_whatever_the_server_does(tmp_path: Path) -> None:
    with FaultyServer(share=0.3) as faulty:
        backend = ServerBackend(server_of(faulty), tmp_path / "answers.sqlite")
        answers = backend.complete(ASK, SAMPLING, range(200))
        backend.close()
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == [
        said(messages, seed) for seed, messages in enumerate(ASK)
    ]
    assert set(faulty.faults) == set(FAULTS)
    assert backend.usage == Usage(2000, 1000, 0.0, sum(faulty.faults.values()))
    assert len(faulty.served) == 200


def test_a_row_the_server_never_answers_is_a_failure_with_the_last_reason(tmp_path: Path) -> None:
    with FaultyServer() as faulty:
        faulty.status = 500
        backend = ServerBackend(server_of(faulty, attempts=2), tmp_path / "answers.sqlite")
        (answer,) = backend.complete(ASK[:1], SAMPLING, [0])
        faulty.status = 400
        (refused,) = backend.complete(ASK[:1], SAMPLING, [0])
        faulty.status = 401
        with pytest.raises(UserError, match=r"refuses the key in \$OPENAI_API_KEY"):
            backend.complete(ASK, SAMPLING, range(200))
        faulty.status = 404
        with pytest.raises(UserError, match="no model `m`"):
            backend.complete(ASK, SAMPLING, range(200))
        backend.close()
    assert isinstance(answer, Failure) and answer.reason == "server_failed" and "2 attempts" in answer.detail
    assert isinstance(refused, Failure) and refused.reason == "refused"


def test_nothing_is_asked_or_paid_for_twice(tmp_path: Path) -> None:
    with FaultyServer(share=0) as faulty:
        server = server_of(faulty, price_in=1.0, price_out=10.0, budget=0.006, concurrency=20)
        backend = ServerBackend(server, tmp_path / "answers.sqlite")
        with pytest.raises(StageFailed, match="the budget is spent"):
            backend.complete(ASK, SAMPLING, range(200))
        backend.close()
        paid = len(faulty.served)
        assert 100 <= paid < 120 and backend.usage.cost >= 0.006
        again = ServerBackend(server_of(faulty), tmp_path / "answers.sqlite", "another stage")
        answers = again.complete(ASK, SAMPLING, range(200))
        assert again.usage == Usage((200 - paid) * 10, (200 - paid) * 5)
        again.close()
    assert all(isinstance(answer, Answer) for answer in answers)
    assert set(faulty.served.values()) == {1} and len(faulty.served) == 200


def test_candidates_from_a_server(given: Any, build: Any) -> None:
    with FaultyServer(share=0.2) as faulty:
        server = {"model": "m", "url": faulty.url, "timeout_s": 5.0}
        made = build(
            Candidates, {"prompts": given("Prompt", PROMPTS)}, n=2, server=server, partition=50, logprobs=False
        )
    rows = made.to_table().to_pylist()
    assert Counter(row["prompt_id"] for row in rows) == {row["id"]: 2 for row in PROMPTS}
    for row in rows:
        assert row["completion"][0]["content"] == said(row["prompt"], row["seed"])
        assert row["model"] == "m" and row["token_ids"] is None and row["logprobs"] is None
    counted = {"delivered": 240, "tokens_in": 2400, "tokens_out": 1200, "finish": {"stop": 240}}
    assert made.manifest["summary"] == {"asked": 240, **counted, "models": {"m": counted}}
    spent = made.manifest["timings"]["spent"]["m"]
    assert (spent["tokens_in"], spent["tokens_out"]) == (2400, 1200) and spent["retries"] > 0


def test_raising_n_asks_for_what_is_new_alone(given: Any, build: Any) -> None:
    with FaultyServer(share=0) as faulty:
        server = {"model": "m", "url": faulty.url}
        prompts = given("Prompt", PROMPTS)
        few = build(Candidates, {"prompts": prompts}, n=1, server=server, logprobs=False)
        many = build(Candidates, {"prompts": prompts}, n=3, server=server, logprobs=False)
    assert len(faulty.served) == 360 and set(faulty.served.values()) == {1}
    kept = few.to_polars()
    assert many.to_polars().filter(pl.col("sample") == 0)["id"].to_list() == kept["id"].to_list()
    assert many.manifest["timings"]["spent"]["m"]["tokens_out"] == 240 * 5


def test_only_what_changes_the_answers_is_part_of_the_identity() -> None:
    near = Candidates(server=ServerSettings(model="m", url="http://127.0.0.1:1/v1", concurrency=3))
    far = Candidates(server=ServerSettings(model="m", url="http://127.0.0.1:2/v1", budget=1.0))
    assert near.identity() == far.identity()
    assert near.identity() != Candidates(server=ServerSettings(model="other")).identity()


def test_waits_are_read_in_every_form_the_standard_has() -> None:
    soon = formatdate(time.time() + 30, usegmt=True)
    for headers, seconds in (
        ({"retry-after": "7"}, 7),
        ({"retry-after": soon}, 30),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ):
        assert retry_after(headers) == pytest.approx(seconds, abs=2 if seconds == 30 else 0)
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None


def test_a_request_that_kills_the_server_is_found_and_the_rest_is_answered(tmp_path: Path) -> None:
    """A server that dies of one request takes all that are under way with it."""
    deaths, dead = 0, False

    async def send(client: Any, request: dict[str, Any]) -> Any:
        nonlocal dead
        await asyncio.sleep(0.01)
        if request["n"] == 13:
            dead = True
        if dead:
            raise openai.APIConnectionError(request=httpx.Request("POST", "http://x"))
        return request["n"]

    def revive() -> int:
        nonlocal deaths, dead
        with lock:
            deaths, dead = deaths + dead, False
            return deaths

    lock = threading.Lock()
    server = ServerSettings(model="m", url="http://127.0.0.1:1/v1", attempts=3)
    cache = AnswersCache(tmp_path / "answers.sqlite")
    delivery = Delivery(
        server, cache, send, lambda n, *_: Answer(str(n), "stop", None, None, None, 0, 0), revive=revive
    )
    results = delivery.deliver([{"n": i} for i in range(60)], range(60))
    delivery.close()
    bad = results.pop(13)
    assert isinstance(bad, Failure) and bad.reason == "engine_died"
    assert [r.text for r in results if isinstance(r, Answer)] == [str(i) for i in range(60) if i != 13]


def test_a_stage_needs_one_who_answers(given: Any, build: Any) -> None:
    with pytest.raises(UserError, match="found neither"):
        build(Candidates, {"prompts": given("Prompt", PROMPTS)})
