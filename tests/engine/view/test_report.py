"""What a report says to whoever has not seen the run."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from engine.statistics import bootstrap
from engine.store.store import Store
from engine.view.report.findings import findings, judge_scores, wilson
from engine.view.report.flow import stops_of
from engine.view.report.page import write_report
from tests.engine.view.ui.small_run import build as build_small


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


@pytest.fixture
def small(store: Store, tmp_path: Path) -> Store:
    build_small(store, tmp_path)
    return store


def test_the_sentence_on_top(small: Store, tmp_path: Path) -> None:
    first, second = findings(stops_of(small, "small"))
    assert first.asked == "whether dpo answer better than sft on 6 prompts"
    assert first.came_out == (
        "dpo's answers win 52% of comparisons with sft's (95 % interval 22% to 82%), which chance may explain"
    )
    assert second.came_out.startswith(
        "3 annotators gave 18 rankings, from which 6 pairs were made; they agree with Krippendorff's alpha 0.62"
    )
    page = text_of(write_report(small, "small", tmp_path / "small.html").read_text())
    sentence = page.index("Dpo's answers win 52% of comparisons")
    assert sentence < page.index("The flow") and page.index("recipe small.yaml") < page.index("The flow")
    for told in (
        "seed 5",
        "cost 1,280 tokens in, 360 out, cost 1.75",
        "Krippendorff's alpha",
        "nats a token",
        "optimizer step",
        "0.51 to 0.71",
    ):
        assert told in page, told


def test_nothing_is_loaded_and_both_lights_are_there(small: Store, tmp_path: Path) -> None:
    page = write_report(small, "small", tmp_path / "small.html").read_text()
    assert "prefers-color-scheme:dark" in page and "@media print" in page and "<script" not in page
    assert not re.search(r"(?:src|href)=\"http", page)


@pytest.mark.parametrize(("hits", "of"), [(1, 10), (3, 130), (6, 6)])
def test_shares_have_wilsons_interval(hits: int, of: int) -> None:
    expected = binomtest(hits, of).proportion_ci(method="wilson")
    assert wilson(hits, of) == pytest.approx((expected.low, expected.high))


def test_scores_are_means_over_prompts(given: Any, build: Any, store: Store) -> None:
    answers = given("Candidate", [
        {"id": f"a{i}", "prompt_id": f"p{i % 3}", "prompt": [{"role": "user", "content": f"{i % 3}?"}],
         "completion": [{"role": "assistant", "content": "x" * i}]}
        for i in range(9)
    ])  # fmt: skip
    judged = build("judge", {"candidates": answers}, rules={"long": "LENGTH(completion)"})
    store.update_run(
        "r",
        lambda record: {"stages": {"judged": {"artifact": judged.id, "kind": "judge", "identity": {}, "inputs": {}}}},
    )
    (score,) = judge_scores(stops_of(store, "r"))
    assert (score.metric, score.answers, score.quarters) == ("long", 9, (2.0, 6.0))
    assert score.mean == bootstrap.mean(range(9), [f"p{i % 3}" for i in range(9)], judged.manifest["seed"] or 0, "long")
    assert score.mean.value == 4.0 and score.mean.low == 3.0 and score.mean.high == 5.0
