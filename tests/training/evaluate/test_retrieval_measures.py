"""Recall, reciprocal rank and nDCG of indexes, by hand, and through `evaluate` with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.errors import StageFailed, UserError
from engine.retrieval.retrieval_index import Hit
from engine.store.artifact import Artifact
from training.evaluate.retrieval_measures import ranking, sought, tabulate_retrieval

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
WORDS = ["kettle", "sail", "barrel", "lantern", "compass", "rope", "anchor", "ladder"]


def hit(document: str, start: int, end: int) -> Hit:
    return Hit(f"{document}{start}", document, f"{document}.md", "", start, end, start, 1, "", None, 1.0)


def test_places_are_counted_and_not_passages() -> None:
    hits = [hit("a", 0, 9), hit("b", 0, 9), hit("a", 10, 19), hit("c", 5, 30)]
    assert list(ranking(hits, ["a", "c:10"])) == ["a", "passage b0", "c:10"]
    assert list(ranking(hits, ["c.md", "c:4"])) == ["passage a0", "passage b0", "passage a10", "c.md"]


def test_gains_are_paired_by_question() -> None:
    random = np.random.default_rng(0)
    hard = random.random(200)
    ours, theirs = {"mrr": np.minimum(1, hard + 0.05)}, {"mrr": hard}
    ids = [str(i) for i in range(200)]
    line = tabulate_retrieval({"a": theirs, "b": ours}, ids, "a", 0)["b"]
    gain, low, high = (float(line[name] or 0) for name in ("mrr_gain", "mrr_gain_low", "mrr_gain_high"))
    assert low <= gain <= high and high - low < 0.01 < gain  # the spread of questions is 30 times as wide


def test_an_index_is_evaluated(build: Build, given: Given) -> None:
    rows = [
        {"id": f"d{i}", "parents": [], "text": f"# The {word}\n\nIt is number {i}.\n\n## Price\n\nThe {word} costs {i} crowns.\n", "source": f"{word}.md", "offset": 0, "metadata": None}
        for i, word in enumerate(WORDS)
    ]  # fmt: skip
    index = build("index", {"documents": given("Document", rows)})
    asked = [
        {"id": f"q{i}", "parents": [], "prompt": [{"role": "user", "content": f"What does the {word} cost, its price?"}],
         "metadata": json.dumps({"gold": [f"d{i}:{rows[i]['text'].index('costs')}"]})}
        for i, word in enumerate(WORDS)
    ]  # fmt: skip
    # of the last two the gold is where nothing leads: one place that is not first, one that is never found
    asked[6]["metadata"] = json.dumps({"gold": ["d6:3"]})
    asked[7]["metadata"] = json.dumps({"gold": ["nowhere.md"]})
    unsaid = {"id": "q9", "parents": [], "prompt": asked[0]["prompt"], "metadata": "{}"}
    made = build("evaluate", {"indexes": {"hb": index}, "prompts": given("Prompt", [*asked, unsaid])}, cutoffs=[1, 5])
    line = made.manifest["summary"]["table"]["hb full_text"]
    assert line["n"] == 8 and line["recall_at_1"] == 6 / 8 and line["recall_at_5"] == 7 / 8
    assert line["recall_at_1_low"] < line["recall_at_1"] < line["recall_at_1_high"]
    verdicts = {(row["subject"], row["metric"]): row["value"] for row in made.to_table().to_pylist()}
    rank = round(1 / verdicts["q6", "mrr"])
    assert rank > 1 and verdicts["q7", "mrr"] == 0 and verdicts["q0", "mrr"] == 1
    assert verdicts["q6", "ndcg_at_10"] == pytest.approx(1 / math.log2(1 + rank))
    with pytest.raises(StageFailed, match="`fail_if"):
        build(
            "evaluate",
            {"indexes": {"hb": index}, "prompts": given("Prompt", asked)},
            fail_if='"hb full_text".mrr < 0.9',
        )
    with pytest.raises(UserError, match="no question says what answers it"):
        sought([unsaid])
