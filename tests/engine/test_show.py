"""Rows as a person reads them, and what a bar tells of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from engine.execution.progress import Bars
from engine.view.show import print_artifact

ROW = {
    "id": "a" * 32, "parents": [], "prompt_id": "b" * 32, "prompt": [{"role": "user", "content": "Why [bold]?"}],
    "completion": [
        {"role": "assistant", "content": "Because.\nSo."}, {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No more."},
    ],
    "token_ids": [5, 6, 7], "logprobs": [-1.0, None, -2.0], "finish_reason": "stop", "model": "sft-1", "sample": 2,
}  # fmt: skip


def test_a_candidate_is_shown_turn_by_turn(given: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_artifact(given("Candidate", [ROW]), 3, rejected=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index("a" * 32)
    assert lines[start + 1 :] == [
        "user  Why [bold]?",
        "assistant  Because.",
        "So.",
        "user  And?",
        "assistant  No more.",
        "sample 2 of sft-1, ended by stop, 3 tokens, mean log-probability -1.50",
    ]


def test_a_bar_tells_tokens_their_rates_and_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    bars, now = Bars(), [100.0]
    monkeypatch.setattr("engine.execution.progress.time.monotonic", lambda: now[0])
    assert bars._tokens({"in": 1000, "out": 500}) == "1,000 tokens in, 500 out"
    now[0] += 10
    told = bars._tokens({"in": 3000, "out": 40500, "cost": 1.234})
    assert told == "3,000 tokens in, 40,500 out (200 and 4,000/s)  cost 1.23"
