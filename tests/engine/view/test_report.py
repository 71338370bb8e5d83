"""What a report says to whoever has not seen the run."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from engine.statistics import bootstrap
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.report.findings import findings, shares_in_words, wilson
from engine.view.report.flow import stops_of
from engine.view.report.judge_scores import judge_scores
from engine.view.report.page import write_report
from engine.view.report.preferred import preferred
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
        "against the answers of sft, those of dpo win 52% (95 % interval 22% to 82%) of comparisons, which chance may explain"
    )
    assert second.came_out.startswith(
        "3 people gave 18 rankings, from which 6 pairs were made; they agree with Krippendorff's alpha 0.62"
    )
    page = text_of(write_report(small, "small", tmp_path / "small.html").read_text())
    sentence = page.index("Against the answers of sft, those of dpo win 52%")
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


def entry(artifact: Artifact, kind: str, **inputs: Artifact) -> dict[str, Any]:
    """A stage of a run's record."""
    ports = {name: [[name, one.id]] for name, one in inputs.items()}
    return {"artifact": artifact.id, "kind": kind, "identity": {}, "inputs": ports}


def test_scores_are_means_over_prompts(given: Any, build: Any, store: Store, tmp_path: Path) -> None:
    answers = given("Candidate", [
        {"id": f"a{i}", "prompt_id": f"p{i % 3}", "prompt": [{"role": "user", "content": f"{i % 3}?"}],
         "completion": [{"role": "assistant", "content": "x" * i}], "model": "small"}
        for i in range(9)
    ])  # fmt: skip
    judged = build("judge", {"candidates": answers}, rules={"long": "LENGTH(completion)"})
    best = build("select", {"candidates": answers, "verdicts": judged}, at_least=4, give="conversations")
    stages = {
        "answers": entry(answers, "candidates"),
        "judged": entry(judged, "judge", candidates=answers),
        "best": entry(best, "select", candidates=answers, verdicts=judged),
    }
    store.update_run("r", lambda record: {"stages": stages, "about": "What an <answer> is worth."})
    (score,) = judge_scores(stops_of(store, "r"))
    assert (score.metric, score.answers, score.prompts, score.quarters) == ("long", 9, 3, (2.0, 6.0))
    assert (score.rule, score.judged) == ("LENGTH(completion)", ("answers",))
    assert score.mean == bootstrap.mean(range(9), [f"p{i % 3}" for i in range(9)], judged.manifest["seed"] or 0, "long")
    assert score.mean.value == 4.0 and score.mean.low == 3.0 and score.mean.high == 5.0
    # A run that generates says how good the answers are, then what was kept of them: five of nine are as long as that.
    page = text_of(write_report(store, "r", tmp_path / "r.html").read_text())
    assert "Asked: how good the 9 answers in answers by small to 3 prompts are. long is 4.00 on average (95 % interval 3.00 to 5.00)." in page  # fmt: skip
    assert "5 conversations to fine-tune on in best ; best let 5 of 9 rows through (55.6%)." in page
    assert "r What an <answer> is worth. Asked:" in page
    assert "<code>best</code> let 5 of 9" in (tmp_path / "r.html").read_text()
    assert "LENGTH(completion)" in page and "Keep the best answers to each prompt by their verdicts" in page


def test_several_models_in_one_sentence() -> None:
    """What is told of each, the greatest share first, the words around it once."""
    known = {"base": (0.0, 0.0, 0.01), "dpo": (0.8, 0.77, 0.82), "ppo": (0.78, 0.76, 0.8), "kto": (0.52, 0.48, 0.56)}
    assert shares_in_words(known, "sft") == (
        "against the answers of sft, those of dpo win 80% (95 % interval 77% to 82%) of comparisons and those of ppo 78% (76% to 80%), "
        "more than chance explains; those of kto win 52% (48% to 56%), which chance may explain; those of base win 0% (0% to 1%), less than an even share"
    )


def test_whose_answers_are_preferred(given: Any, store: Store) -> None:
    """By hand: of each prompt's two answers by two stages, the second one's is first on prompts 0 to 5, on 6 they are equal, on 7 last."""
    answers = {
        name: given("Candidate", [
            {"id": f"{name}{i}", "prompt_id": f"p{i}", "prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": name}]}
            for i in range(8)
        ])
        for name in ("plain", "shown")
    }  # fmt: skip
    ranks = [[2, 1]] * 6 + [[1, 1], [1, 2]]
    rankings = given("Ranking", [
        {"id": f"r{i}{who}", "prompt_id": f"p{i}", "prompt": [{"role": "user", "content": "?"}], "candidates": [f"plain{i}", f"shown{i}"],
         "completions": ["plain", "shown"], "ranks": ranks[i], "annotator": who, "annotator_kind": "scripted"}
        for i in range(8) for who in ("scripted-ada", "scripted-ben")
    ])  # fmt: skip
    stages = {
        "plain": entry(answers["plain"], "candidates"),
        "shown": entry(answers["shown"], "grounded"),
        "rankings": entry(rankings, "label", plain=answers["plain"], shown=answers["shown"]),
    }
    store.update_run("r", lambda record: {"stages": stages})
    (found,) = preferred(stops_of(store, "r")[-1], stops_of(store, "r"))
    assert (found.better, found.worse, found.comparisons, found.prompts) == ("shown", "plain", 16, 8)
    assert found.share.value == 6.5 / 8 and 0 < found.share.low < found.share.value < found.share.high <= 1
    first = findings(stops_of(store, "r"))[0]
    assert first.asked == "whose answers 2 scripted annotators, stand-ins and no people, prefer: shown and plain"
    assert first.came_out.startswith("against the answers of plain, those of shown win 81% (95 % interval ")
    assert " of 16 comparisons, " in first.came_out


def test_what_an_exam_asks_is_no_result(small: Store, given: Any) -> None:
    """Rows that only an evaluation took from did not come out of a run; rows that nothing took from did."""
    exam = given("Prompt", [{"id": "q0", "prompt": [{"role": "user", "content": "?"}]}])
    texts = given("Document", [{"id": f"d{i}", "text": "one", "source": "a", "offset": i} for i in range(3)])

    def add(record: dict[str, Any]) -> dict[str, Any]:
        results = record["stages"]["results"]
        asked = {**results, "inputs": {**results["inputs"], "exam": [["exam", exam.id]]}}
        return {"stages": {"exam": entry(exam, "read"), **record["stages"], "results": asked, "texts": entry(texts, "read")}}  # fmt: skip

    small.update_run("small", add)
    *_, last = findings(stops_of(small, "small"))
    assert last.came_out == "3 texts in `texts`"
