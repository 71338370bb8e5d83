"""Rows as a person reads them, and what a bar tells of tokens."""

from __future__ import annotations

from typing import Any

import pytest
from rich.progress import TaskID

from engine.execution.progress import Bar
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.show import print_artifact
from engine.view.spending import in_words, spending

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
    bar, now = Bar(TaskID(0)), [100.0]
    monkeypatch.setattr("engine.execution.progress.time.monotonic", lambda: now[0])
    assert bar.told_tokens({"in": 1000, "out": 500}) == "1,000 tokens in, 500 out"
    now[0] += 10
    told = bar.told_tokens({"in": 3000, "out": 40500, "cost": 1.234})
    assert told == "3,000 tokens in, 40,500 out (200 and 4,000/s)  cost 1.23"


def test_spending_is_added_up_once_an_artifact_and_odd_notes_are_left_out() -> None:
    def noted(name: str, spent: Any) -> Artifact:
        return Artifact(Store("."), name, {"timings": {"spent": spent} if spent else {}})

    one = noted("a", {"m": {"tokens_in": 1000, "tokens_out": 20, "cost": 0.5}, "n": {"tokens_in": 1, "tokens_out": 2}})
    told = spending([one, one, noted("b", None), noted("c", {"usd": 3, "odd": {"calls": 1}})])
    assert told == {"tokens_in": 1001, "tokens_out": 22, "cost": 0.5}
    assert in_words(told) == "1,001 tokens in, 22 out, cost 0.50"
    assert spending([noted("b", None)]) == {} and spending([noted("c", {"usd": 3})]) == {}
