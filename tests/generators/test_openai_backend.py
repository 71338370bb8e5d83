"""The official client against a real local server that fails on purpose: every row exactly once, or with its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StageFailed, UserError
from generators.backend import Answer, Failure, Sampling
from generators.candidates import Candidates
from generators.openai_backend import Server, ServerBackend
from tests.generators.faulty_server import FAULTS, FaultyServer, said

PROMPTS = [
    {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"Say {i}!"}], "reference": str(i)}
    for i in range(120)
]
ASK = [[{"role": "user", "content": f"question {i}"}] for i in range(200)]
SAMPLING = Sampling(logprobs=False)


def server_of(faulty: FaultyServer, **more: Any) -> Server:
    return Server(model="m", url=faulty.url, **{"timeout_s": 5.0, **more})


def test_every_row_is_answered_exactly_once_whatever_the_server_does(tmp_path: Path) -> None:
    with FaultyServer(share=0.3) as faulty:
        backend = ServerBackend(server_of(faulty), tmp_path / "answers.jsonl")
        answers = backend.complete(ASK, SAMPLING, range(200))
        backend.close()
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == [
        said(messages, seed) for seed, messages in enumerate(ASK)
    ]
    assert set(faulty.faults) == set(FAULTS)
    assert backend.retries == sum(faulty.faults.values())
    assert len(faulty.served) == 200
    assert (backend.tokens_in, backend.tokens_out) == (2000, 1000)


def test_a_row_the_server_never_answers_is_a_failure_with_the_last_reason(tmp_path: Path) -> None:
    with FaultyServer() as faulty:
        faulty.status = 500
        backend = ServerBackend(server_of(faulty, attempts=2), tmp_path / "answers.jsonl")
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
        backend = ServerBackend(server, tmp_path / "answers.jsonl")
        with pytest.raises(StageFailed, match="the budget is spent"):
            backend.complete(ASK, SAMPLING, range(200))
        backend.close()
        paid = len(faulty.served)
        assert 100 <= paid < 120 and backend.cost >= 0.006
        with (tmp_path / "answers.jsonl").open("a") as file:
            file.write('{"request": "cut sho')
        again = ServerBackend(server_of(faulty), tmp_path / "answers.jsonl")
        answers = again.complete(ASK, SAMPLING, range(200))
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


def test_only_what_changes_the_answers_is_part_of_the_identity() -> None:
    near = Candidates(server=Server(model="m", url="http://127.0.0.1:1/v1", concurrency=3))
    far = Candidates(server=Server(model="m", url="http://127.0.0.1:2/v1", budget=1.0))
    assert near.identity() == far.identity()
    assert near.identity() != Candidates(server=Server(model="other")).identity()


def test_a_stage_needs_one_who_answers(given: Any, build: Any) -> None:
    with pytest.raises(UserError, match="found neither"):
        build(Candidates, {"prompts": given("Prompt", PROMPTS)})
