from __future__ import annotations

import json
from typing import Any

import pytest

from engine.errors import UserError
from labeling.preferences.ai_feedback_stage import AiFeedback
from labeling.preferences.stage import Preferences
from tests.labeling.ranking_rows import candidates, kept, ranking


def verdict(parents: list[str], metric: str, value: float, judge: str | None = "gpt") -> dict[str, Any]:
    text = json.dumps({"judge": judge}) if judge else "no JSON"
    return {"id": f"{metric}-{'-'.join(parents)}", "parents": parents, "subject": parents[0], "metric": metric, "value": value, "text": text}  # fmt: skip


def test_pairs_become_rankings_of_two(given: Any, build: Any) -> None:
    verdicts = [verdict(["p0-0", "p0-1"], "pairwise", 1.0), verdict(["p0-0", "p0-2"], "pairwise", 0.0), verdict(["p0-1", "p0-2"], "pairwise", 0.5)]  # fmt: skip
    made = build(
        AiFeedback, {"candidates": given("Candidate", candidates(2, 3)), "verdicts": given("Verdict", verdicts)}
    )
    found = {tuple(row["candidates"]): row for row in made.to_table().to_pylist()}
    assert {key: row["ranks"] for key, row in found.items()} == {
        ("p0-0", "p0-1"): [1, 2], ("p0-0", "p0-2"): [2, 1], ("p0-1", "p0-2"): [1, 1],
    }  # fmt: skip
    assert {(row["annotator"], row["annotator_kind"]) for row in found.values()} == {("gpt", "judge")}
    assert found["p0-0", "p0-1"]["parents"] == ["p0-0", "p0-1", "pairwise-p0-0-p0-1"]
    assert made.manifest["rejected"] == {"not_judged": 1}


def test_scores_rank_all_answers_and_aspects_add_up(given: Any, build: Any) -> None:
    scores = {"p0-0": (1, 5), "p0-1": (4, 2), "p0-2": (5, 5)}
    verdicts = [
        verdict([i], metric, value, None)
        for i, both in scores.items()
        for metric, value in zip("ab", both, strict=True)
    ]
    inputs = {"candidates": given("Candidate", candidates(1, 3)), "verdicts": given("Verdict", verdicts)}
    (row,) = build(AiFeedback, inputs, metrics=["a", "b"]).to_table().to_pylist()
    assert dict(zip(row["candidates"], row["ranks"], strict=True)) == {"p0-0": 2, "p0-1": 2, "p0-2": 1}
    (row,) = build(AiFeedback, inputs, metrics=["b"], annotator="mine").to_table().to_pylist()
    assert (row["annotator"], row["ranks"]) == ("mine", [1, 3, 1])
    with pytest.raises(UserError, match=r"no verdict has a metric of \['c'\]; there are \['a', 'b'\]"):
        build(AiFeedback, inputs, metrics=["c"])
    with pytest.raises(UserError, match="not among `candidates`"):
        build(AiFeedback, {**inputs, "candidates": given("Candidate", candidates(1, 2))}, metrics=["a"])


def test_a_judge_is_one_more_annotator_and_never_mixed_in_silence(given: Any, build: Any) -> None:
    pool = given("Candidate", candidates(4, 2))
    verdicts = [verdict([f"p{p}-0", f"p{p}-1"], "pairwise", 1.0 if p else 0.0) for p in range(4)]
    judge = build(AiFeedback, {"candidates": pool, "verdicts": given("Verdict", verdicts)})
    people = [
        ranking(f"p{p}", "ann", {"answer 0": 1, "answer 1": 2}, candidates=[f"p{p}-0", f"p{p}-1"],
                prompt=[{"role": "user", "content": f"q{p}"}])
        for p in range(4)
    ]  # fmt: skip
    rankings = {"rankings": [given("Ranking", people), judge]}
    with pytest.raises(UserError, match=r"several kinds of annotator \(judge, person\)"):
        build(Preferences, rankings)
    alone = build(Preferences, rankings, kinds=["person"], validation=0)
    assert len(kept(alone)) == 4
    told = alone.manifest["summary"]["kinds"]["judge"]
    assert (told["share"], told["agrees_with_people"]["value"], told["annotators"]) == (0.5, 0.75, 1)
    assert set(kept(build(Preferences, {"rankings": judge}, validation=0))) == {
        ("p0-1", "p0-0"), ("p1-0", "p1-1"), ("p2-0", "p2-1"), ("p3-0", "p3-1"),
    }  # fmt: skip
