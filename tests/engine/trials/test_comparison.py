"""Two runs held against each other, with planted differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.trials.comparison import compare
from engine.trials.comparison_text import as_json, lines, sparkline

Given = Callable[[str, list[dict[str, Any]]], Artifact]
PROMPTS = 120


def verdicts(gain: float, seed: int) -> list[dict[str, Any]]:
    """Two answers to each prompt; `better` has gained so much, `length` is noise."""
    hard = np.random.default_rng(0).normal(0, 3, PROMPTS)
    noise = np.random.default_rng(seed)
    return [
        {
            "id": f"{metric}-{prompt}-{sample}-{seed}", "parents": [], "subject": f"p{prompt}", "model": "dpo", "metric": metric,
            "value": float(hard[prompt] + noise.normal() + (gain if metric == "better" else 0)), "sample": sample,
        }
        for metric in ("better", "length") for prompt in range(PROMPTS) for sample in range(2)
    ]  # fmt: skip


def candidates(changed: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{i}-{changed if i < changed else 0}", "parents": [], "prompt_id": f"p{i}", "sample": 0, "model": "m",
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "completion": [{"role": "assistant", "content": "another" if i < changed else "the same"}],
        }
        for i in range(10)
    ]  # fmt: skip


@pytest.fixture
def runs(store: Store, given: Given) -> Store:
    """Two runs: lr differs, `better` has gained 1, 3 of 10 answers are other, and one stage is the same in both."""
    shared = given("Document", [{"id": "d", "parents": [], "text": "t", "source": "s", "offset": 0}])

    def note(run: str, lr: float, seed: int, gain: float, changed: int) -> None:
        made = {
            "docs": shared,
            "answers": given("Candidate", candidates(changed)),
            "eval": given("Verdict", verdicts(gain, seed)),
        }
        identity = {"kind": "dpo", "version": 1, "config": {"lr": lr}, "sources": {}, "inputs": {}}
        stages = {
            stage: {"artifact": one.id, "kind": "given", "identity": {**identity, "config": {}}, "inputs": {}}
            for stage, one in made.items()
        }
        stages["answers"]["identity"] = identity
        store.update_run(run, lambda record: {**record, "stages": stages})

    note("plain", 1e-5, 1, 0.0, 0)
    note("hot", 3e-5, 2, 1.0, 3)
    return store


def test_what_was_planted_is_found_and_noise_is_called_noise(runs: Store) -> None:
    found = compare(runs, "plain", "hot")
    assert found.configured == {"answers": ["lr: 1e-05 -> 3e-05"]} and found.shared == ["docs"]
    by_metric = {one.metric: one.difference for one in found.measured}
    better, length = by_metric["better"], by_metric["length"]
    assert better and better.paired and better.prompts == PROMPTS and better.beyond_noise
    assert (
        better.low <= 1.0 <= better.high and better.high - better.low < 0.6
    )  # prompts differ by 3: unpaired, it were 1.5
    assert length and not length.beyond_noise and length.low <= 0 <= length.high
    (rows,) = found.changed
    assert (rows.same, rows.only_first, rows.only_second, rows.matched, rows.other) == (7, 3, 3, 3, 3)
    assert rows.examples[0] == ("Question 0?", "the same", "another")
    told = "\n".join(lines(found))
    assert told.startswith("plain and hot: 1 of 2 differences that were measured are beyond noise: dpo better +")
    assert (
        "answers: 7 in both, 3 only in plain, 3 only in hot; of 3 that belong to each other 3 say something else"
        in told
    )
    assert json.loads(json.dumps(as_json(found)))["measured"][0]["difference"]["beyond_noise"] is True


def test_a_run_and_itself_are_the_same(runs: Store) -> None:
    assert next(iter(lines(compare(runs, "plain", "plain")))) == "plain and plain: the same."
    with pytest.raises(UserError, match="Did you mean `plain`"):
        compare(runs, "plian", "hot")


def test_curves_and_rows_of_two_runs_of_a_recipe(recipe: Path, run_store: Store, flywheel: Any) -> None:
    done = flywheel("run", recipe, "--as", "more", "--set", "louder.times=4", "--set", "other.steps=9")
    assert done.returncode == 0, done.stderr
    found = compare(run_store, "toy", "more")
    assert found.configured == {"louder": ["times: 2 -> 4"], "other": ["steps: 3 -> 9"]}
    learnt = {one.stage: one for one in found.learnt}
    assert learnt["other"].first == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))] and len(learnt["other"].second) == 9
    (rows,) = [one for one in found.changed if one.stage == "louder"]
    assert (rows.same, rows.matched, rows.other) == (0, 23, 23)  # the ids are the same, the texts are not
    told = flywheel("compare", "toy", "more", "--rows", "1").stdout
    assert "toy: LINE 0!!!" in told and "more: LINE 0!!!!!" in told and "nothing was measured" in told
    assert flywheel("compare", "toy", "mroe").returncode == 2


def test_a_curve_in_blocks() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([float(i) for i in range(1000)], 0, 999)) == 24
    assert sparkline([float("nan"), 1.0], 1, 1) == "▄"


def test_answers_are_paired_by_their_prompts(store: Store, given: Given, build: Any) -> None:
    """Verdicts on answers name answers, and two runs have others; the prompts are the same."""

    def judged(tag: str, gain: float) -> Artifact:
        rows = [
            {**row, "id": f"{tag}{i}", "completion": [{"role": "assistant", "content": "x" * int(10 * i + gain)}]}
            for i, row in enumerate(candidates(0))
        ]
        return build("judge", {"candidates": given("Candidate", rows)}, rules={"length": "length(completion) * 1.0"})

    for name, one in {"short": judged("s", 0), "long": judged("l", 1)}.items():
        entry = {"artifact": one.id, "kind": "judge", "inputs": {}}
        store.update_run(name, lambda record, entry=entry: {**record, "stages": {"judged": entry}})
    (measured,) = [one for one in compare(store, "short", "long").measured if one.metric == "length"]
    told = measured.difference
    assert told and told.paired and told.prompts == 10 and told.value == 1.0 and told.beyond_noise
