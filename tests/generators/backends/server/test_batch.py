"""The batch API against a local server that speaks it, through the official client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StageFailed
from generators.backends import json_answers
from generators.backends.protocol import Answer, Failure, Sampling, Usage
from generators.backends.server.batch import BatchBackend, cut
from generators.backends.server.settings import ServerSettings
from tests.generators.backends.server.batch_server import BatchServer
from tests.generators.faulty_server import said

ASK: list[list[dict[str, str]]] = [[{"role": "user", "content": f"question {i}"}] for i in range(30)]
SAMPLING = Sampling(logprobs=False)


def backend_of(server: BatchServer, folder: Path, **more: Any) -> BatchBackend:
    return BatchBackend(
        ServerSettings(model="m", url=server.url, batch=True, **more), folder / "answers.sqlite", "stage", poll_s=0.01
    )


def test_a_batch_is_answered_in_order_and_what_failed_is_asked_again(tmp_path: Path) -> None:
    asked = [*ASK, [{"role": "user", "content": "refuse me"}], [{"role": "user", "content": " "}]]
    with BatchServer(fails=1) as server:
        backend = backend_of(server, tmp_path, price_in=1.0, price_out=10.0)
        answers = backend.complete(asked, SAMPLING, range(32))
        assert backend.usage == Usage(300, 150, 0.0018, 30)
        backend.close()
    assert [a.text for a in answers if isinstance(a, Answer)] == [said(m, i) for i, m in enumerate(ASK)]
    assert [a.reason for a in answers if isinstance(a, Failure)] == ["refused", "empty_prompt"]
    assert len(server.batches) == 2 and set(server.served.values()) == {1}
    again = backend_of(server, tmp_path)  # the server is gone: nothing is asked
    assert again.complete(ASK, SAMPLING, range(30)) == answers[:30]
    again.close()


@pytest.mark.parametrize("noted", [True, False])
def test_a_killed_run_waits_on_for_the_batch_it_handed_in(tmp_path: Path, monkeypatch: Any, noted: bool) -> None:
    with BatchServer() as server:
        backend = backend_of(server, tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(BatchBackend, "_wait", killed)
            if not noted:  # killed between making the batch and noting it
                patched.setattr("generators.backends.server.answers_cache.AnswersCache.put_batch", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                backend.complete(ASK, SAMPLING, range(30))
        again = backend_of(server, tmp_path)
        answers = again.complete(ASK, SAMPLING, range(30))
        again.close()
    assert all(isinstance(answer, Answer) for answer in answers)
    assert len(server.batches) == 1


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_bad_answers_are_asked_for_in_a_new_batch_by_the_next_run(tmp_path: Path) -> None:
    """The provider still has the old batches, under the same name; what they came to was taken, and was no use."""
    with BatchServer() as server:
        for count in (2, 4):  # the answers and their repairs
            backend = backend_of(server, tmp_path)
            answers, _ = json_answers.complete(backend, ASK[:3], SAMPLING, [0, 1, 2], {"type": "object"})
            assert [a.reason for a in answers if isinstance(a, Failure)] == ["invalid_json"] * 3
            assert len(server.batches) == count and backend.usage.tokens_in == count * 30
            backend.close()


def test_nothing_is_handed_in_beyond_the_budget(tmp_path: Path) -> None:
    with BatchServer() as server:
        backend = backend_of(server, tmp_path, budget_tokens=100)
        backend.complete(ASK[:10], SAMPLING, range(10))
        with pytest.raises(StageFailed, match="the budget is spent: 150 tokens"):
            backend.complete(ASK[10:], SAMPLING, range(20))
        backend.close()
    assert len(server.batches) == 1


def test_files_are_cut_where_the_api_ends(monkeypatch: Any) -> None:
    monkeypatch.setattr("generators.backends.server.batch.MOST_REQUESTS", 4)
    monkeypatch.setattr("generators.backends.server.batch.MOST_BYTES", 1000)
    short = {str(i): {"x": 1} for i in range(9)}
    assert [len(some) for some in cut(short)] == [4, 4, 1]
    long = {str(i): {"x": "y" * 400} for i in range(5)}
    assert [len(some) for some in cut(long)] == [1] * 5


def test_what_a_batch_should_not_hold_is_asked_again_or_left_out(tmp_path: Path) -> None:
    garbled = list[bool]()

    def garble(lines: list[str]) -> list[str]:
        if garbled:
            return lines
        garbled.append(True)
        held = [json.loads(line) for line in lines]
        held[0]["response"]["body"]["choices"][0]["message"]["content"] = "half \ud800"
        held[1]["response"]["body"]["choices"] = []
        held[2]["response"] = "fine"
        held[3]["response"]["status_code"] = "200"
        held[4]["response"]["body"] = None
        twice = json.loads(lines[5])
        twice["response"]["body"]["choices"][0]["message"]["content"] = "another"
        stray = {**held[6], "custom_id": "never asked"}
        more = [stray, {**stray, "custom_id": 7}, {**stray, "custom_id": ["x"]}, twice, held[7], held[8]]
        odd = ["", "no JSON", "[" * 100_000, "[]", "7", '{"custom_id": ' + "9" * 5000 + "}"]
        return [json.dumps(one) for one in [*held[:9], *more]] + odd  # and all after the ninth are missing

    said_lines = list[str]()
    with BatchServer(garble=garble) as server:
        backend = backend_of(server, tmp_path)
        backend._say = said_lines.append  # pyright: ignore[reportPrivateUsage]
        answers = backend.complete(ASK, SAMPLING, range(30))
        assert [a.text for a in answers if isinstance(a, Answer)] == [said(m, i) for i, m in enumerate(ASK)]
        # The half of a pair, and both of two answers, were paid for.
        assert backend.usage.tokens_in == 300 + 10 + 20 + 10 and len(server.batches) == 2
        backend.close()
    assert [line for line in said_lines if "left out" in line] == [
        "Batch batch-0: 3 lines are no answer to what was asked; they are left out."
    ]


def test_an_answer_that_stays_bad_is_one_row_with_its_reason(tmp_path: Path) -> None:
    def garble(lines: list[str]) -> list[str]:
        return [line.replace("question 3 ->", "question\\u0000 ->") for line in lines]

    with BatchServer(garble=garble) as server:
        backend = backend_of(server, tmp_path, attempts=2)
        answers = backend.complete(ASK[:5], SAMPLING, range(5))
        backend.close()
    (bad,) = [a for a in answers if isinstance(a, Failure)]
    assert bad.reason == "server_failed" and "`content` has a NUL at character 8" in bad.detail


def test_a_batch_is_not_waited_for_beyond_its_window(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("generators.backends.server.batch.WINDOW", 0.1)
    with BatchServer(looks=10**9) as server:
        backend = backend_of(server, tmp_path)
        with pytest.raises(StageFailed, match=r"batch batch-0 is `in_progress` after .*Run again to go on waiting"):
            backend.complete(ASK, SAMPLING, range(30))
        server.looks = 1
        assert all(isinstance(answer, Answer) for answer in backend.complete(ASK, SAMPLING, range(30)))
        backend.close()
    assert len(server.batches) == 1
