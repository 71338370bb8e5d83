"""What is kept is what a few lines of plain Python would keep."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import UserError
from engine.plan.inputs import resolve
from generators.candidates.select_stage import Select

RANDOM = random.Random(5)
CANDIDATES = [
    {
        "id": f"{p:016x}{s:016x}", "parents": [f"{p:032x}"], "prompt_id": f"{p:032x}", "sample": s, "model": "m",
        "prompt": [{"role": "user", "content": f"Question {p}?"}], "reference": str(p),
        "completion": [{"role": "assistant", "content": f"answer {s}"}],
    }
    for p in range(40)
    for s in range(6)
]  # fmt: skip
VALUE = {row["id"]: RANDOM.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for row in CANDIDATES}
SHORT = {row["id"]: RANDOM.random() for row in CANDIDATES}
UNJUDGED = {CANDIDATES[3]["id"], CANDIDATES[100]["id"]}


def verdict(subject: str, metric: str, value: float, judge: int) -> dict[str, Any]:
    return {
        "id": f"{subject}{metric}{judge}",
        "parents": [subject],
        "subject": subject,
        "metric": metric,
        "value": value,
    }


VERDICTS = [
    verdict(one, "reward", VALUE[one] + judge, judge)  # two judges, whose mean is the value
    for one in VALUE
    if one not in UNJUDGED
    for judge in (-1, 1)
]
MORE = VERDICTS + [verdict(one, "short", SHORT[one], 0) for one in SHORT]


@pytest.fixture
def run(given: Any, build: Any) -> Any:
    def of(verdicts: list[dict[str, Any]], **config: Any) -> Any:
        inputs = {"candidates": given("Candidate", CANDIDATES), "verdicts": given("Verdict", verdicts)}
        return build(Select, inputs, **config)

    return of


def groups() -> list[list[str]]:
    ids = [[row["id"] for row in CANDIDATES if row["prompt_id"] == f"{p:032x}"] for p in range(40)]
    return [[one for one in group if one not in UNJUDGED] for group in ids]


def test_best_of_n(run: Any) -> None:
    made = run(VERDICTS, best=2)
    expected = {one for group in groups() for one in sorted(group, key=lambda i: (-VALUE[i], i))[:2]}
    rows = made.to_table().to_pylist()
    assert {row["id"] for row in rows} == expected and len(rows) == 80
    assert all(row["value"] == VALUE[row["id"]] and row["completion"] for row in rows)
    assert made.manifest["rejected"] == {"no_verdict": 2, "not_best": 240 - 80 - 2} and made.manifest["failed"] == 2


def test_a_threshold_and_the_best_of_what_reaches_it_by_a_weighted_sum(run: Any) -> None:
    made = run(MORE, weights={"reward": 1.0, "short": -0.5}, at_least=0.4, best=1)
    worth = {one: VALUE[one] - 0.5 * SHORT[one] for one in VALUE}
    best = [max(group, key=lambda i: worth[i]) for group in groups()]
    assert set(made.to_polars()["id"]) == {one for one in best if worth[one] >= 0.4}


def test_conversations_for_sft(run: Any) -> None:
    made = run(VERDICTS, at_least=1.0, give="conversations")
    assert made.kind == "Conversation"
    rows = made.to_table().to_pylist()
    expected = [row for row in CANDIDATES if VALUE[row["id"]] == 1.0 and row["id"] not in UNJUDGED]
    assert [row["parents"] for row in rows] == [[row["id"]] for row in expected]
    assert [row["messages"] for row in rows] == [row["prompt"] + row["completion"] for row in expected]


def test_statistical_rejection_sampling_accepts_as_often_as_it_should(given: Any, build: Any) -> None:
    """One prompt, 4,000 answers worth 0 and one worth 1: each is accepted with probability exp(-1 / beta)."""
    rows = [{**CANDIDATES[0], "id": f"{i:032x}", "sample": i} for i in range(4001)]
    verdicts = [verdict(row["id"], "reward", float(not i), 0) for i, row in enumerate(rows)]
    inputs = {"candidates": given("Candidate", rows), "verdicts": given("Verdict", verdicts)}
    made = build(Select, inputs, beta=1.5)
    chance = math.exp(-1 / 1.5)
    assert rows[0]["id"] in set(made.to_polars()["id"])
    assert abs(made.rows - 1 - 4000 * chance) < 5 * math.sqrt(4000 * chance * (1 - chance))
    assert build(Select, inputs, beta=1.5, seed=1).digest != made.digest


def test_what_counts_has_to_be_clear(run: Any) -> None:
    with pytest.raises(UserError, match=r"which metric counts.* the verdicts have reward, short"):
        run(MORE, best=1)
    with pytest.raises(UserError, match=r"no verdict measures `rewards`. Did you mean `reward`"):
        run(MORE, best=1, metric="rewards")
    with pytest.raises(UserError, match="are these the verdicts of these candidates"):
        run([verdict("f" * 32, "reward", 1.0, 0)], best=1)
    with pytest.raises(ValidationError, match="nothing to select by"):
        Select()


def test_candidates_from_a_plain_file_are_chosen_prompt_by_prompt(store: Any, build: Any, tmp_path: Path) -> None:
    """Without a `prompt_id`; of equal answers the earlier is kept."""
    rows = [{"id": f"{p}{a}", "prompt": f"Q{p}?", "completion": f"A{a}"} for p in range(2) for a in range(3)]
    values = {"00": 1.0, "01": 5.0, "02": 5.0, "10": 0.5, "11": 0.1, "12": 0.2}
    judged = [{"subject": one, "metric": "m", "value": value} for one, value in values.items()]
    inputs: dict[str, Any] = {}
    for name, kind, lines in (("candidates", "Candidate", rows), ("verdicts", "Verdict", judged)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        inputs[name] = resolve(f"{name}.jsonl", tmp_path, (kind,), store).adopt(store)
    made = build(Select, inputs, best=1)
    assert sorted(made.to_table()["id"].to_pylist()) == ["01", "10"]
    assert made.manifest["summary"]["prompts"] == made.manifest["summary"]["prompts_kept"] == 2


def test_conversations_keep_the_columns_that_only_some_answers_have(given: Any, build: Any) -> None:
    rows = [
        {**row, "retrieved": [f"d{i}:0"], "cited": [], "stars": i, "metadata": json.dumps({"from": "my app"})}
        for i, row in enumerate(CANDIDATES[:6])
    ]
    inputs = {"candidates": [given("Candidate", rows), given("Candidate", CANDIDATES[6:12])]}
    made = build(Select, {**inputs, "verdicts": given("Verdict", VERDICTS)}, at_least=0, give="conversations")
    kept = {row["parents"][0]: row for row in made.to_table().to_pylist()}
    for i, row in enumerate(rows):
        if row["id"] not in UNJUDGED:
            got = kept[row["id"]]
            assert (got["retrieved"], got["cited"], got["stars"]) == ([f"d{i}:0"], [], i)
            assert json.loads(got["metadata"]) == {"from": "my app", "model": "m", "value": VALUE[row["id"]]}
            assert got["messages"] == [*row["prompt"], *row["completion"]] and got["reference"] == row["reference"]
    assert kept[CANDIDATES[8]["id"]]["retrieved"] is None
