from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.errors import UserError
from engine.store.schema import row_id
from labeling.ask.stage import Ask
from tests.labeling.ranking_rows import candidates


def verdicts(members: list[list[list[float]]]) -> list[dict[str, Any]]:
    """values[member][prompt][answer]"""
    return [
        {"id": row_id("Verdict", m, p, a), "parents": [], "subject": f"p{p}-{a}", "model": f"m{m}", "metric": "reward", "value": v}
        for m, by_prompt in enumerate(members)
        for p, row in enumerate(by_prompt)
        for a, v in enumerate(row)
    ]  # fmt: skip


def asked(artifact: Any) -> dict[str, str]:
    return {row["id"]: row["asked"] for row in artifact.to_table().to_pylist()}


def test_the_stage_asks_where_the_ensemble_disagrees(given: Any, build: Any) -> None:
    agree = [2.0, 0.0, -2.0]
    members = [[agree, agree, [3.0, 0.0, -3.0]], [agree, agree, [-3.0, 0.0, 3.0]]]
    inputs = {"candidates": given("Candidate", candidates(3, 3)), "verdicts": given("Verdict", verdicts(members))}
    artifact = build(Ask, inputs, prompts=1, random_share=0)
    assert asked(artifact) == {"p2-0": "information", "p2-2": "information"}
    assert artifact.manifest["rejected"] == {"not_asked": 7}
    assert set(asked(build(Ask, inputs, prompts=1, random_share=0, answers=3))) == {"p2-0", "p2-1", "p2-2"}
    ends = asked(build(Ask, inputs, prompts=3, by="max_min", random_share=0))
    assert {k: v for k, v in ends.items() if k[:2] != "p2"} == dict.fromkeys(
        ("p0-0", "p0-2", "p1-0", "p1-2"), "max_min"
    )
    drawn = build(Ask, {"candidates": inputs["candidates"]}, prompts=2, by="random")
    assert sorted(asked(drawn).values()) == ["random"] * 4
    assert drawn.manifest["summary"]["asked"] == {"random": 4}


def test_the_stage_asks_first_what_nobody_ranked_then_what_is_least_settled(given: Any, build: Any) -> None:
    def ranking(p: int, annotator: str, ranks: list[int]) -> dict[str, Any]:
        return {
            "id": row_id("Ranking", p, annotator), "parents": [], "prompt_id": f"p{p}", "annotator": annotator,
            "prompt": [{"role": "user", "content": f"q{p}"}], "candidates": [f"p{p}-0", f"p{p}-1"],
            "completions": ["answer 0", "answer 1"], "ranks": ranks, "annotator_kind": "person",
        }  # fmt: skip

    rankings = [ranking(0, name, [1, 2]) for name in "abcdef"]
    rankings += [ranking(1, name, [1, 2] if name == "a" else [2, 1]) for name in "ab"]
    rankings += [ranking(2, name, [2, 1]) for name in "abcdef"]
    inputs = {"candidates": given("Candidate", candidates(4, 2)), "rankings": given("Ranking", rankings)}
    first = build(Ask, inputs, prompts=1, random_share=0)
    second = build(Ask, inputs, prompts=2, random_share=0)
    assert {k[:2] for k in asked(first)} == {"p3"} and {k[:2] for k in asked(second)} == {"p3", "p1"}


def test_the_stage_says_what_it_needs(given: Any, build: Any) -> None:
    pool = given("Candidate", candidates(3, 2))
    with pytest.raises(UserError, match="needs `verdicts` of a reward ensemble, or `rankings`"):
        build(Ask, {"candidates": pool}, prompts=1)
    one = given("Verdict", verdicts([[[1.0, 0.0]] * 3]))
    with pytest.raises(UserError, match="from 1 models; expected information needs two or more"):
        build(Ask, {"candidates": pool, "verdicts": one}, prompts=1)
    gap = given("Verdict", verdicts([[[1.0, 0.0]] * 2] * 2))
    with pytest.raises(UserError, match="2 candidates have no verdict"):
        build(Ask, {"candidates": pool, "verdicts": gap}, prompts=3, random_share=0)
    with pytest.raises(UserError, match="no prompt has two different answers"):
        build(Ask, {"candidates": given("Candidate", candidates(2, 1))}, prompts=1, by="random")


def test_the_order_of_candidates_does_not_matter(given: Any, build: Any) -> None:
    rows = candidates(20, 3)
    rng = np.random.default_rng(0)
    judged = given("Verdict", verdicts(rng.normal(size=(3, 20, 3)).tolist()))
    one = build(Ask, {"candidates": given("Candidate", rows), "verdicts": judged}, prompts=8, answers=2)
    two = build(Ask, {"candidates": given("Candidate", rows[::-1]), "verdicts": judged}, prompts=8, answers=2)
    assert asked(one) == asked(two) and len(asked(one)) == 16
