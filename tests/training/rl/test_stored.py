"""Answers sampled before, measured anew: no engine, no token; and what the table and the gate make of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import StageFailed, UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.text.chat_template import ChatTemplate
from tests.training import tiny_chat
from tests.training.tiny_chat import assistant, one_thread, reward_model, user
from training.evaluate.perplexity import surprise, windows
from training.evaluate.stage import Evaluate
from training.models.answers import EncodedAnswer
from training.reward.model import RewardModel

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]
WORDS = ["yes", "no", "red", "blue", "green", "good"]


def candidates(seed: int, prompts: int = 12, n: int = 8, long: int = 3) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    tokens = tiny_chat.tokenizer()
    rows: list[dict[str, Any]] = []
    for p in range(prompts):
        asked = user(f"what colour {WORDS[p % 6]} ?")
        for s in range(n):
            text = " ".join(random.choice(WORDS, size=int(random.integers(1, long + 1))))
            rows.append(
                {
                    "id": f"c{seed}-{p}-{s}",
                    "prompt_id": f"p{p}",
                    "prompt": asked,
                    "completion": assistant(text),
                    "prompt_token_ids": ChatTemplate(tokens).prompt(asked),
                    "token_ids": [*tokens.encode(text, add_special_tokens=False), 1],
                    "finish_reason": "stop",
                    "model": "m",
                    "sample": s,
                    "reference": "blue",
                }
            )
    return rows


def test_stored_answers_are_scored_by_whatever_reward_model_is_given(
    store: Store, given: Given, build: Build, tmp_path: Path
) -> None:
    old, new = (reward_model(store, tmp_path / f"r{seed}", seed) for seed in (1, 2))
    rows = candidates(0)
    stored = given("Candidate", rows)
    for artifact in (old, new):
        made = build(Evaluate, {"candidates": {"sft": stored}, "reward": artifact}, checks={"blue": {"kind": "exact"}})
        verdicts = made.to_polars()
        model = RewardModel.load(artifact.location)
        expected = model.score([EncodedAnswer(row["prompt_token_ids"], row["token_ids"]) for row in rows]).tolist()
        found = {
            (s, n): v for s, n, v in verdicts.filter(metric="reward").select("subject", "sample", "value").iter_rows()
        }
        assert [found[row["prompt_id"], row["sample"]] for row in rows] == pytest.approx(expected, abs=1e-5)
        line = made.manifest["summary"]["table"]["sft"]
        assert line["reward"] == pytest.approx(np.mean(expected), abs=1e-5)
        exact = [row["completion"][0]["content"] == "blue" for row in rows]
        assert line["blue"] == pytest.approx(np.mean(exact), abs=1e-6) and line["n"] == 96 and line["kl"] is None


def test_the_best_of_n_stands_beside_its_model(store: Store, given: Given, build: Build, tmp_path: Path) -> None:
    reward = reward_model(store, tmp_path / "r", 1)
    rows = candidates(0)
    made = build(Evaluate, {"candidates": {"sft": given("Candidate", rows)}, "reward": reward}, best_of={"sft": 4})
    table = json.loads((made.path / "table.json").read_text())
    assert list(table) == ["sft", "sft best of 4"]
    assert table["sft best of 4"]["kl_bound"] == pytest.approx(math.log(4) - 3 / 4) and table["sft"]["kl_bound"] is None
    scores = RewardModel.load(reward.location).score(
        [EncodedAnswer(row["prompt_token_ids"], row["token_ids"]) for row in rows]
    )
    best = scores.reshape(-1, 4).max(1).values
    assert table["sft best of 4"]["reward"] == pytest.approx(best.mean().item(), abs=1e-5)
    assert table["sft best of 4"]["n"] == 24
    with pytest.raises(UserError, match="has 8 answers to prompt p0, and `best_of` asks for 9"):
        build(Evaluate, {"candidates": {"sft": given("Candidate", rows)}, "reward": reward}, best_of={"sft": 9})


def test_win_rates_are_told_raw_and_at_equal_length(given: Given, build: Build) -> None:
    """`long` differs from `short` in length alone, and the utility is the length."""
    both = {"short": given("Candidate", candidates(0, 60, 4, 2)), "long": given("Candidate", candidates(1, 60, 4, 5))}
    made = build(Evaluate, {"candidates": both}, reference="short", utility="1.0 * length")
    table = made.manifest["summary"]["table"]
    long, short = table["long"], table["short"]
    assert long["gold_win_rate"] > 0.65
    assert long["length_controlled_win_rate"] < long["gold_win_rate"] - 0.1
    assert short["gold_win_rate"] == short["length_controlled_win_rate"] == 0.5
    assert long["bradley_terry"] == pytest.approx(-short["bradley_terry"])
    odds = math.log(long["gold_win_rate"] / (1 - long["gold_win_rate"]))
    assert long["bradley_terry"] - short["bradley_terry"] == pytest.approx(odds, rel=0.05)
    assert json.loads((made.path / "samples.json").read_text())[0]["answers"].keys() == {"short", "long"}


def test_a_regression_fails_the_stage_and_shows_the_table(given: Given, build: Build) -> None:
    both = {"sft": given("Candidate", candidates(0)), "ppo": given("Candidate", candidates(1, long=1))}
    checks: dict[str, Any] = {"short": "length <= 2", "blue": {"kind": "exact"}}
    inputs = {"candidates": both}
    with pytest.raises(StageFailed) as failed:
        build(Evaluate, inputs, checks=checks, fail_if="ppo.short > sft.short + 0.1")
    message = str(failed.value)
    assert "`fail_if: ppo.short > sft.short + 0.1` is true: ppo.short = 1, sft.short = " in message
    assert "bits_per_byte" not in message and len([line for line in message.splitlines() if line.startswith("  ")]) == 3
    kept = Path(message.rsplit(" is in ", 1)[1].rstrip("."))
    assert json.loads(kept.read_text())["ppo"]["short"] == 1.0
    passed = build(Evaluate, inputs, checks=checks, fail_if=["ppo.short < sft.short", "ppo.blue > 1"])
    assert set(passed.manifest["summary"]["table"]) == {"sft", "ppo"}


def test_bad_configurations_are_refused_before_anything_is_measured(given: Given, build: Build) -> None:
    stored = {"sft": given("Candidate", candidates(0, 2, 2))}
    for config, message in [
        ({"fail_if": "ppo.length > 3"}, "there is no model `ppo`"),
        ({"best_of": {"sft": 2}}, "chooses by a reward model"),
        ({"best_of": {"sfd": 2}}, "`best_of` is sfd, which is none of the models. Did you mean `sft`"),
        ({"checks": {"kl": "1"}}, "a check can't be called `kl`"),
    ]:
        with pytest.raises(UserError, match=message):
            build(Evaluate, {"candidates": stored}, **config)
    with pytest.raises(UserError, match="or `candidates` that were sampled before"):
        build(Evaluate, {})
    with pytest.raises(ValueError, match="the best of 1 answers of `sft` is no choice"):
        Evaluate.model_validate({"best_of": {"sft": 1}})
    with pytest.raises(ValueError, match=r"there is no metric `lenght`. Did you mean `length`"):
        Evaluate.model_validate({"fail_if": "sft.lenght > 3"})


def test_bits_a_byte_are_the_models_own_loss(tmp_path: Path, store: Store, given: Given, build: Build) -> None:
    text = "what colour is the cat ?"
    model = tiny_chat.policy()
    ids = tiny_chat.tokenizer().encode(text, add_special_tokens=False)
    with torch.no_grad():
        whole = torch.tensor([[1, *ids]])
        loss = model(whole, labels=whole).loss.item()  # transformers' own mean over the predicted tokens
    (found,) = surprise(model, tiny_chat.tokenizer(), [text])
    assert found.tokens == len(ids) and found.nats == pytest.approx(loss * len(ids), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(loss * len(ids) / math.log(2) / len(text), rel=1e-5)
    one = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "m"))
    texts = given("Document", [{"id": f"d{i}", "text": f"{text} {WORDS[i]}"} for i in range(5)])
    made = build(Evaluate, {"models": {"base": one}, "texts": texts})
    line = made.manifest["summary"]["table"]["base"]
    costs = surprise(model, tiny_chat.tokenizer(), [f"{text} {WORDS[i]}" for i in range(5)])
    total = sum(cost.nats for cost in costs)
    assert line["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(cost.size for cost in costs), abs=1e-5)
    assert line["perplexity"] == pytest.approx(math.exp(total / sum(cost.tokens for cost in costs)), rel=1e-5)
    assert line["bits_per_byte_low"] <= line["bits_per_byte"] <= line["bits_per_byte_high"]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 20, 23])
@pytest.mark.parametrize("start", [99, None])
def test_every_token_is_scored_once_with_half_a_context_before_it(length: int, start: int | None) -> None:
    ids = list(range(length))
    found = windows(ids, start, 8)
    scored = [token for part in found for token in part.response]
    assert scored == (ids if start is not None else ids[1:])
    assert all(len(part) <= 8 and len(part.prompt) >= 1 for part in found)
    assert all(len(part.prompt) >= 4 for part in found[1:])
