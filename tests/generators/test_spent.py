"""Every stage that asks a server has in its manifest what it took: as many tokens as the server counted."""

from __future__ import annotations

from typing import Any

import pytest

from generators.candidates.dialogue_stage import Dialogue
from generators.corpus.stage import Corpus
from generators.grounded.stage import Grounded
from generators.instructions.stage import Instructions
from generators.judge.stage import Judge
from tests.generators.faulty_server import FaultyServer

DOCUMENTS = [
    {"id": f"{i:032x}", "parents": [], "text": f"River {i} is long and runs to sea {i}.", "source": "s", "offset": i}
    for i in range(3)
]
PROMPTS = [{"id": f"p{i}", "parents": [], "prompt": [{"role": "user", "content": f"River {i}?"}]} for i in range(3)]
CANDIDATES = [
    {"id": f"c{i}", "parents": [], "prompt_id": f"p{i}", "prompt": PROMPTS[i]["prompt"], "model": "x", "sample": 0,
     "completion": [{"role": "assistant", "content": "Long."}]} for i in range(3)
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "ports", "config", "who"),
    [
        (Grounded, ("documents", "prompts"), {}, {"m": 3}),
        (Corpus, ("records",), {"documents": 3, "styles": ["wiki"]}, {"m": 3}),
        (Instructions, ("seeds",), {"method": {"name": "multi_turn", "least": 2, "most": 2}, "count": 3}, {"m": 9}),
        (Judge, ("candidates",), {"rubric": {"n": "it is n"}}, {"m": 3}),
        # The user is played by the same model, twice a conversation; what it takes stands apart.
        (Dialogue, ("prompts",), {"turns": 3, "user_server": True}, {"m": 9, "m (user)": 6}),
    ],
)
def test_spent(given: Any, build: Any, stage: Any, ports: Any, config: dict[str, Any], who: dict[str, int]) -> None:
    rows = {
        "documents": given("Document", DOCUMENTS), "records": given("Document", DOCUMENTS),
        "prompts": given("Prompt", PROMPTS), "seeds": given("Prompt", PROMPTS), "candidates": given("Candidate", CANDIDATES),
    }  # fmt: skip

    def said(messages: list[dict[str, str]], seed: int) -> str:
        return f'{{"n": {seed % 5 + 1}}}' if "whole number" in messages[0]["content"] else f"It is so, {seed}."

    with FaultyServer(share=0, answer=said) as server:
        asked = {"model": "m", "url": server.url, "price_in": 100_000}
        if "user_server" in config:
            config = {**config, "user_server": asked}
        made = build(stage, {port: rows[port] for port in ports}, server=asked, **config)
    spent = made.manifest["timings"]["spent"]
    assert {name: one["tokens_in"] for name, one in spent.items()} == {name: 10 * n for name, n in who.items()}
    assert {name: one["tokens_out"] for name, one in spent.items()} == {name: 5 * n for name, n in who.items()}
    assert sum(server.served.values()) == sum(who.values())
    assert {name: one["cost"] for name, one in spent.items()} == {name: pytest.approx(n) for name, n in who.items()}
