"""Candidates from a real engine: token-exact, complete, and the same bytes after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import seeds
from generators.candidates import Candidates
from generators.prompting import decode, encode_prompt, load_tokenizer

PROMPTS = [
    {"id": f"{i:032x}", "parents": [], "prompt": [{"role": "user", "content": f"Say {i}!"}], "reference": str(i)}
    for i in range(14)
]


def test_rows_are_complete_and_token_exact(given: Any, build: Any, model: Any, tiny: Path, log_softmax: Any) -> None:
    policy = model(tiny)
    made = build(Candidates, {"model": policy, "prompts": given("Prompt", PROMPTS)}, n=3, max_tokens=16, partition=5)
    rows = made.to_table().to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p["id"], s) for p in PROMPTS for s in range(3)]
    tokenizer, weights = load_tokenizer(str(tiny)), AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    asked = {row["id"]: row for row in PROMPTS}
    for row in rows:
        prompt = asked[row["prompt_id"]]
        assert row["prompt"] == prompt["prompt"] and row["reference"] == prompt["reference"]
        assert row["parents"] == [row["prompt_id"]] and row["model"] == policy.id
        assert row["prompt_token_ids"] == encode_prompt(tokenizer, prompt["prompt"])
        assert row["completion"] == [{"role": "assistant", "content": decode(tokenizer, row["token_ids"])}]
        assert row["logprobs"] == pytest.approx(
            log_softmax(weights, row["prompt_token_ids"], row["token_ids"]), abs=1e-4
        )
        assert row["seed"] == seeds.derive(0, "candidates", row["prompt_id"], row["sample"])
        assert json.loads(row["sampling"])["max_tokens"] == 16
    assert len({row["id"] for row in rows}) == len(rows)
    assert made.manifest["summary"]["tokens_out"] == sum(len(row["token_ids"]) for row in rows)
    assert made.manifest["summary"]["tokens_in"] == sum(len(row["prompt_token_ids"]) for row in rows)


def test_an_interrupted_run_ends_with_the_same_bytes(
    given: Any, build: Any, model: Any, tiny: Path, store: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from engine.job import Part
    from engine.store import Store

    settings: dict[str, Any] = {"n": 2, "max_tokens": 12, "partition": 3, "temperature": 0.9}
    prompts, policy = given("Prompt", PROMPTS), model(tiny)
    commit, count = Part.commit, [0]

    def dies(self: Part, *rows: Any) -> None:
        if count[0] == 2:
            raise KeyboardInterrupt
        count[0] += 1
        commit(self, *rows)

    monkeypatch.setattr(Part, "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        build(Candidates, {"model": policy, "prompts": prompts}, **settings)
    monkeypatch.setattr(Part, "commit", commit)
    resumed = build(Candidates, {"model": policy, "prompts": prompts}, **settings)
    assert resumed.rows == 28
    # The same in another store, never interrupted.
    elsewhere = Store(str(tmp_path / "elsewhere"))
    from engine.worker import carry_out

    inputs = {"model": {"m": policy}, "prompts": {"p": prompts}}
    whole = carry_out(elsewhere, "candidates", Candidates(seed=0, **settings), inputs)
    assert whole.digest == resumed.digest


def test_prompts_that_cannot_be_asked_and_answers_said_before_are_rejected(
    given: Any, build: Any, model: Any, tiny: Path
) -> None:
    long = {**PROMPTS[0], "id": "a" * 32, "prompt": [{"role": "user", "content": "word " * 200}]}
    empty = {**PROMPTS[0], "id": "b" * 32, "prompt": [{"role": "user", "content": " "}]}
    nothing = {**PROMPTS[0], "id": "c" * 32, "prompt": []}
    prompts = given("Prompt", [PROMPTS[1], long, PROMPTS[1], empty, PROMPTS[2], nothing, PROMPTS[1]])
    settings: dict[str, Any] = {"n": 5, "temperature": 0, "distinct": True, "max_tokens": 4, "partition": 2}
    made = build(Candidates, {"model": model(tiny), "prompts": prompts}, max_failed=0.9, **settings)
    assert made.to_polars()["prompt_id"].to_list() == [PROMPTS[1]["id"], PROMPTS[2]["id"]]
    assert made.manifest["rejected"] == {"duplicate": 8, "duplicate_id": 2, "empty_prompt": 2, "too_long": 1}
    assert made.manifest["failed"] == 5
