"""A judge over a real client and server: verdicts do not depend on the order shown, and bias is reported."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
from pydantic import ValidationError

from generators.judge import Judge
from tests.generators.faulty_server import FaultyServer

TEXTS = [["a", "bbb", "cc"], ["dddd", "e"], ["ff", "gg", "hhhhh", "i"], ["alone"]]
CANDIDATES = [
    {
        "id": f"{p:016x}{s:016x}", "parents": [], "prompt_id": f"{p:032x}", "sample": s, "model": f"model{s}",
        "prompt": [{"role": "user", "content": f"Question {p}?"}],
        "completion": [{"role": "assistant", "content": text}],
    }
    for p, texts in enumerate(TEXTS)
    for s, text in enumerate(texts)
]  # fmt: skip
LENGTH = {row["id"]: len(row["completion"][0]["content"]) for row in CANDIDATES}


def prefers_longer(messages: list[dict[str, str]], seed: int) -> str:
    shown = re.search(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n", messages[0]["content"])
    assert shown
    a, b = len(shown[1]), len(shown[2])
    return json.dumps({"winner": "A" if a > b else "B" if b > a else "tie"})


def judged(given: Any, build: Any, answer: Any, **config: Any) -> Any:
    with FaultyServer(share=0.1, answer=answer) as faulty:
        server = {"model": "judge", "url": faulty.url, "timeout_s": 1.0}
        return build(Judge, {"candidates": given("Candidate", CANDIDATES)}, server=server, partition=2, **config)


def test_pairs_are_judged_in_both_orders(given: Any, build: Any) -> None:
    made = judged(given, build, prefers_longer, pairwise=True)
    got = {(r["subject"], json.loads(r["text"])["against"]): r["value"] for r in made.to_table().to_pylist()}
    groups = [[row["id"] for row in CANDIDATES if row["prompt_id"] == f"{p:032x}"] for p in range(len(TEXTS))]
    expected: dict[tuple[str, str], float] = {}
    for one, other in (pair for group in groups for pair in combinations(group, 2)):
        value = 0.5 + 0.5 * ((LENGTH[one] > LENGTH[other]) - (LENGTH[one] < LENGTH[other]))
        expected[one, other], expected[other, one] = value, 1 - value
    assert got == expected
    assert made.manifest["summary"] == {"first_preferred": 0.0, "order_decided": 0.0}


def test_a_judge_that_always_takes_the_first_decides_nothing_and_is_found_out(given: Any, build: Any) -> None:
    made = judged(given, build, lambda messages, seed: '{"winner": "A"}', pairwise=True)
    assert set(made.to_polars()["value"]) == {0.5}
    assert made.manifest["summary"] == {"first_preferred": 1.0, "order_decided": 1.0}


def test_aspects_are_rated_and_nonsense_is_rejected(given: Any, build: Any) -> None:
    def rates(messages: list[dict[str, str]], seed: int) -> str:
        text = next(m["content"] for m in messages if "[Answer]" in m["content"])
        answer = text.split("[Answer]\n")[1].split("\n")[0]
        return "five stars" if answer == "alone" else json.dumps({"brevity": max(1, 5 - len(answer)), "tone": 3})

    made = judged(given, build, rates, rubric={"brevity": "it is short", "tone": "it is kind"}, rules={"one": "1"})
    values = {(r["subject"], r["metric"]): r["value"] for r in made.to_table().to_pylist()}
    for one, length in LENGTH.items():
        assert values[one, "one"] == 1.0
        if length == 5 and one == CANDIDATES[-1]["id"]:
            assert (one, "tone") not in values
        else:
            assert values[one, "brevity"] == max(1, 5 - length) and values[one, "tone"] == 3
    assert made.manifest["rejected"] == {"invalid_json": 1}


def test_a_judge_needs_something_to_judge_by() -> None:
    with pytest.raises(ValidationError, match="nothing to judge by"):
        Judge()
