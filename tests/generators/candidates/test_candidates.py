"""Candidates from a real engine: token-exact, complete, and the same bytes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import seeds
from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.store.store import Store
from generators.backends.process.watched import WatchedEngine
from generators.candidates.stage import Candidates
from generators.text.chat_template import ChatTemplate
from generators.text.prompts import decode, load_tokenizer

PROMPTS = [
    {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"Say {i}!"}], "reference": str(i)}
    for i in range(14)
]


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bytes(
    given: Any, build: Any, model: Any, tiny: Path, tmp_path: Path, monkeypatch: Any, log_softmax: Any
) -> None:
    settings: dict[str, Any] = {"n": 3, "max_tokens": 16, "partition": 4, "temperature": 0.9}
    inputs = {"model": {"m": model(tiny)}, "prompts": {"p": given("Prompt", PROMPTS)}}
    commit, count = Job.commit, [0]

    def dies(self: Job, *rows: Any, **more: Any) -> None:
        if count[0] == 2:
            raise KeyboardInterrupt
        count[0] += 1
        commit(self, *rows, **more)

    with lasting_engine() as started:
        monkeypatch.setattr(Job, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            build(Candidates, inputs, **settings)
        monkeypatch.setattr(Job, "commit", commit)
        resumed = build(Candidates, inputs, **settings)
        assert len(started) == 1
    whole = carry_out(Store(str(tmp_path / "elsewhere")), "candidates", Candidates(seed=0, **settings), inputs)
    assert whole.digest == resumed.digest
    check(whole, tiny, inputs["model"]["m"].id, log_softmax)


@contextmanager
def lasting_engine() -> Iterator[list[WatchedEngine]]:
    """Stages that start an engine here get the first one's: starting another takes longer than all that is asked of it."""
    started: list[WatchedEngine] = []

    class Lasting(WatchedEngine):
        def __new__(cls, *_: Any, **__: Any) -> Any:
            if not started:
                started.append(super().__new__(cls))
            return started[0]

        def __init__(self, *args: Any, **options: Any) -> None:
            if not vars(self):
                super().__init__(*args, **options)

        def close(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("generators.backends.open.WatchedEngine", Lasting)
        yield started
    for engine in started:
        WatchedEngine.close(engine)


def check(made: Any, folder: Path, model: str, log_softmax: Any) -> None:
    """Every row is there, complete, and its tokens are those that were sampled."""
    rows = made.to_table().to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p["id"], s) for p in PROMPTS for s in range(3)]
    tokenizer, weights = load_tokenizer(str(folder)), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked: dict[str, Any] = {row["id"]: row for row in PROMPTS}
    for row in rows:
        prompt = asked[row["prompt_id"]]
        assert row["prompt"] == prompt["prompt"] and row["reference"] == prompt["reference"]
        assert row["parents"] == [row["prompt_id"]] and row["model"] == model
        assert row["prompt_token_ids"] == ChatTemplate(tokenizer).prompt(prompt["prompt"])
        assert row["completion"] == [{"role": "assistant", "content": decode(tokenizer, row["token_ids"])}]
        expected = log_softmax(weights, row["prompt_token_ids"], row["token_ids"], 0.9)
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["seed"] == seeds.derive(0, "candidates", row["prompt_id"], row["sample"])
        assert json.loads(row["sampling"])["max_tokens"] == 16
    assert len({row["id"] for row in rows}) == len(rows)
    summary = made.manifest["summary"]
    assert summary["asked"] == summary["delivered"] == len(rows)
    assert summary["tokens_out"] == sum(len(row["token_ids"]) for row in rows)
    assert summary["tokens_in"] == sum(len(row["prompt_token_ids"]) for row in rows)


def test_prompts_that_cannot_be_asked_and_answers_said_before_are_rejected(
    given: Any, build: Any, model: Any, tiny: Path
) -> None:
    long = {**PROMPTS[0], "id": "a" * 32, "prompt": [{"role": "user", "content": "word " * 200}]}
    empty = {**PROMPTS[0], "id": "b" * 32, "prompt": [{"role": "user", "content": " "}]}
    nothing = {**PROMPTS[0], "id": "c" * 32, "prompt": []}
    prompts = given("Prompt", [PROMPTS[1], long, PROMPTS[1], empty, PROMPTS[2], nothing, PROMPTS[1]])
    settings: dict[str, Any] = {
        "n": 5,
        "temperature": 0,
        "distinct": True,
        "max_tokens": 4,
        "partition": 2,
        "engine": "transformers",
    }
    made = build(Candidates, {"model": model(tiny), "prompts": prompts}, max_failed=0.9, **settings)
    assert made.to_polars()["prompt_id"].to_list() == [PROMPTS[1]["id"], PROMPTS[2]["id"]]
    assert made.manifest["rejected"] == {"duplicate": 8, "duplicate_id": 2, "empty_prompt": 2, "too_long": 1}
    assert made.manifest["failed"] == 5


def test_models_and_temperatures_are_dealt_in_turn(
    given: Any, build: Any, model: Any, tiny: Path, untied: Path, log_softmax: Any
) -> None:
    folders = {model(folder).id: folder for folder in (tiny, untied)}
    settings: dict[str, Any] = {"n": 5, "temperature": [0.0, 0.8], "max_tokens": 6, "engine": "transformers"}
    inputs = {"model": [model(tiny), model(untied)], "prompts": given("Prompt", PROMPTS)}
    made = build(Candidates, inputs, partition=5, **settings)
    dealt: dict[int, tuple[str, float]] = {}
    weights = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for name, folder in folders.items()
    }
    rows = made.to_table().to_pylist()
    for row in rows:
        temperature = json.loads(row["sampling"])["temperature"]
        assert dealt.setdefault(row["sample"], (row["model"], temperature)) == (row["model"], temperature)
        expected = log_softmax(weights[row["model"]], row["prompt_token_ids"], row["token_ids"], temperature or 1.0)
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
    one, other = folders
    assert dealt == {0: (one, 0.0), 1: (other, 0.0), 2: (one, 0.8), 3: (other, 0.8), 4: (one, 0.0)}
    assert sorted((r["prompt_id"], r["sample"]) for r in rows) == [(p["id"], s) for p in PROMPTS for s in range(5)]
    models = made.manifest["summary"]["models"]
    assert {name: entry["delivered"] for name, entry in models.items()} == {one: 14 * 3, other: 14 * 2}
    with pytest.raises(UserError, match="`n: 3` is too small for 2 who answer at 2 temperatures"):
        build(Candidates, inputs, **{**settings, "n": 3})


def test_where_it_runs_is_no_part_of_what_is_made() -> None:
    plain, spread = Candidates(), Candidates(replicas=4, options={"tensor_parallel_size": 2})
    assert plain.identity() == spread.identity()
    assert plain.identity() != Candidates(options={"speculative_config": {"method": "ngram"}}).identity()
