"""Evaluation with a real engine: its table against the rows behind it, and its KL against the exact divergence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.text.chat_template import ChatTemplate
from tests.training import killed, tiny_chat
from tests.training.tiny_chat import PROMPTS, one_thread, reward_model
from training.evaluate.stage import Evaluate

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]

CHECKS = {"answers": "finish_reason = 'stop'", "accuracy": "STRPOS(completion, reference) > 0"}


@pytest.fixture
def models(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    """`base` has no chat template; `same` has the reference's weights; `other` has others."""
    folders = {
        "base": tiny_chat.save(tmp_path / "base", seed=1),
        "sft": tiny_chat.save(tmp_path / "sft"),
        "same": tiny_chat.save(tmp_path / "same"),
        "other": tiny_chat.save(tmp_path / "other", seed=2),
    }
    plain = tiny_chat.tokenizer()
    plain.chat_template = None
    plain.save_pretrained(folders["base"])
    (folders["base"] / "chat_template.jinja").unlink(missing_ok=True)
    return {label: tiny_chat.artifact(store, folder) for label, folder in folders.items()}


def test_the_table_says_what_the_rows_say(models: dict[str, Artifact], given: Given, build: Build) -> None:
    prompts = given("Prompt", PROMPTS)
    made = build(
        Evaluate,
        {"models": models, "prompts": prompts},
        reference="sft",
        n=16,
        max_tokens=6,
        checks=CHECKS,
        utility="-1.0 * length",
        show=3,
    )
    table = json.loads((made.path / "table.json").read_text())
    assert list(table) == ["base", "sft", "same", "other"]
    rows = made.to_polars()
    # every model, prompt and sample; the base model has no KL, for it is prompted in another way
    assert len(rows) == (4 * 5 + 3) * 8 * 16 and rows["id"].n_unique() == len(rows)
    assert set(rows["subject"]) == {row["id"] for row in PROMPTS}

    for model, line in table.items():
        own = rows.filter(model=model)
        for metric in ("accuracy", "answers", "length"):
            assert line[metric] == pytest.approx(own.filter(metric=metric)["value"].mean(), abs=1e-6)
        assert line["accuracy_low"] <= line["accuracy"] <= line["accuracy_high"]
        texts = own.filter(metric="sample")
        lengths = dict(
            own.filter(metric="length").select("subject", "value").group_by("subject").agg("value").iter_rows()
        )
        theirs = dict(
            rows.filter(model="sft", metric="length")
            .group_by("subject")
            .agg("value")
            .select("subject", "value")
            .iter_rows()
        )
        pairs = [(a, b) for p in lengths for a in lengths[p] for b in theirs[p]]
        rate = sum(1.0 if a < b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
        assert line["gold_win_rate"] == pytest.approx(rate, abs=1e-6)
        assert line["n"] == len(texts) == 128
        right = ["blue" in (text or "") for text in texts["text"]]
        assert line["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)

    assert table["base"]["kl"] is None and table["base"]["reward"] is None
    assert table["sft"]["kl"] == 0 and table["sft"]["gold_win_rate_low"] == table["sft"]["gold_win_rate_high"] == 0.5
    # the same weights and the same seeds give the same answers, token by token
    same, sft = (
        rows.filter(model=m, metric="sample").sort("subject", "sample")["text"].to_list() for m in ("same", "sft")
    )
    assert same == sft and table["same"]["gold_win_rate"] == 0.5 and table["same"]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows.filter(model="other", metric="sample").sort("subject", "sample")["text"].to_list() != sft

    samples = json.loads((made.path / "samples.json").read_text())
    assert len(samples) == 3 and list(samples[0]["answers"]) == list(table)
    assert made.manifest["summary"]["table"] == table


def test_the_kl_is_the_exact_divergence_but_for_sampling(
    models: dict[str, Artifact], given: Given, build: Build, store: Store, tmp_path: Path
) -> None:
    """Answers of one token: KL = sum_y p(y) log p(y) / q(y) over the whole vocabulary. Beside it, the best of two."""
    pair = {"sft": models["sft"], "other": models["other"]}
    inputs = {"models": pair, "prompts": given("Prompt", PROMPTS), "reward": reward_model(store, tmp_path / "r", 1)}
    made = build(Evaluate, inputs, reference="sft", n=200, max_tokens=1, best_of={"other": 2})
    p, q = tiny_chat.policy(seed=2), tiny_chat.policy(seed=0)
    exact: list[float] = []
    variance: list[float] = []
    for row in PROMPTS:
        ids = torch.tensor([ChatTemplate(tiny_chat.tokenizer()).prompt(row["prompt"])])
        logp, logq = (m(ids).logits[0, -1].double().log_softmax(-1).detach() for m in (p, q))
        exact.append((logp.exp() * (logp - logq)).sum().item())
        variance.append((logp.exp() * (logp - logq) ** 2).sum().item() - exact[-1] ** 2)
    error = np.sqrt(np.mean(variance) / (200 * len(PROMPTS)))
    found = made.manifest["summary"]["table"]["other"]["kl"]
    assert abs(found - np.mean(exact)) < 4 * error and np.mean(exact) > 10 * error
    table = made.manifest["summary"]["table"]
    best, plain = table["other best of 2"], table["other"]
    assert best["n"] == plain["n"] == 200 * len(PROMPTS) and best["kl"] is None
    # E[max of two] - E[one] = half the mean absolute difference of two answers' rewards
    rewards = made.to_polars().filter(model="other", metric="reward").sort("subject", "sample")
    by_prompt = [group["value"].to_numpy() for _, group in rewards.group_by("subject", maintain_order=True)]
    gain = np.mean([np.abs(one[:, None] - one[None]).sum() / (200 * 199) / 2 for one in by_prompt])
    assert best["reward"] - plain["reward"] == pytest.approx(gain, rel=0.15)


def test_bad_configurations_are_refused(models: dict[str, Artifact], given: Given, build: Build) -> None:
    prompts = given("Prompt", PROMPTS[:2])
    with pytest.raises(UserError, match=r"`reference` is stf, which is none of the models. Did you mean `sft`\?"):
        build(Evaluate, {"models": models, "prompts": prompts}, reference="stf")
    with pytest.raises(UserError, match="a check can't be called `reward`"):
        build(Evaluate, {"models": models, "prompts": prompts}, checks={"reward": "1"})


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_rows(
    tmp_path: Path, models: dict[str, Artifact], given: Given, store: Store
) -> None:
    made = given("Prompt", PROMPTS)
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.evaluate.stage:Evaluate",
        "imports": killed.VLLM,
        "config": {"seed": 3, "n": 4, "max_tokens": 4, "checks": CHECKS, "reference": "sft"},
        "inputs": {
            "models": {label: ["Model", str(a.path)] for label, a in models.items()},
            "prompts": {"d": ["", made.id]},
        },
    }
    killed.start(spec, tmp_path, kill_at=2)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None and resumed.digest == whole.digest
