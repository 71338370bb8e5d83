"""The label stage against the real server: what scripted annotators see is what comes back, through the shuffle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import UserError, Waiting
from engine.store import Artifact

ANSWERS = ["the best", "good", "poor", "the worst"]


@pytest.fixture
def inputs(given: Callable[..., Artifact], client: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Artifact]:
    """Six prompts with four answers each (and one whose answers are all the same), judged 3, 2, 1, 0."""
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    candidates: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    for p in range(7):
        for a, text in enumerate(ANSWERS if p < 6 else ["same", "same"]):
            candidate_id = f"{p:016x}{a:016x}"
            candidates.append({
                "id": candidate_id, "parents": [f"{p:032x}"], "prompt_id": f"{p:032x}", "model": "m", "seed": a, "sample": a,
                "prompt": [{"role": "user", "content": f"Question {p}?"}], "completion": [{"role": "assistant", "content": text}],
            })  # fmt: skip
            verdicts.append({
                "id": f"{p:08x}{a:024x}", "parents": [candidate_id], "subject": candidate_id, "metric": "utility", "value": 3.0 - a,
            })  # fmt: skip
    return {"candidates": given("Candidate", candidates), "verdicts": given("Verdict", verdicts)}


def test_ranks_find_their_candidates_through_the_shuffle(
    client: Any, inputs: dict[str, Artifact], build: Callable[..., Artifact]
) -> None:
    annotators = [{"name": name} for name in ("ada", "ben", "cleo")]
    made = build("label", inputs, per_record=2, scripted=annotators, dataset="label-test")
    rows = made.to_table().to_pylist()
    assert len(rows) == 6 * 2
    for row in rows:
        assert dict(zip(row["completions"], row["ranks"], strict=True)) == dict(zip(ANSWERS, [1, 2, 3, 4], strict=True))
        assert row["annotator_kind"] == "scripted" and row["annotator"].startswith("scripted-")
        assert row["parents"] == row["candidates"] and sorted(row["shown"]) == [0, 1, 2, 3]
    assert len({tuple(row["shown"]) for row in rows}) > 1
    assert made.manifest["rejected"] == {"one_answer": 1}


def test_without_stand_ins_the_stage_waits_for_people(
    client: Any, inputs: dict[str, Artifact], build: Callable[..., Artifact], store: Any
) -> None:
    with pytest.raises(Waiting, match=r"0 of 6 prompts are ranked. Rank the others at http"):
        build("label", {"candidates": inputs["candidates"]}, dataset="label-people")
    assert not [a for a in store.artifacts() if a.id.startswith("label-")]


def test_stand_ins_without_verdicts_are_refused(inputs: dict[str, Artifact], build: Callable[..., Artifact]) -> None:
    with pytest.raises(UserError, match="need `verdicts`"):
        build("label", {"candidates": inputs["candidates"]}, scripted=[{"name": "ada"}])
