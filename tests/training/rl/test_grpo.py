"""GRPO and its successors: the gradient of the first step worked out from the kept rollouts, the reference that was
given, what is refused, and SIGKILL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.curves import curve
from tests.training.tiny_chat import PROMPTS, one_thread
from training.models.answers import EncodedAnswer
from training.models.logprobs import token_logprobs
from training.rl.grpo_stage import Grpo

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]
RULES = {"right": "completion = reference", "brief": "-0.1 * length"}


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "other", seed=1))


def kept(made: Artifact, iteration: int = 0) -> list[dict[str, Any]]:
    return pq.read_table(made.path / "rollouts" / f"{iteration:05d}.parquet").to_pylist()


def answers_of(rows: list[dict[str, Any]]) -> list[EncodedAnswer]:
    from generators.text.chat_template import ChatTemplate

    tokenizer = tiny_chat.tokenizer()
    return [EncodedAnswer(ChatTemplate(tokenizer).prompt(tiny_chat.user(r["prompt"])), r["token_ids"]) for r in rows]


def gradient_norm(weights: np.ndarray, answers: list[EncodedAnswer]) -> float:
    """Of sum_i weights_i sum_t log pi(y_it), one answer at a time."""
    model = tiny_chat.policy()
    for weight, answer in zip(weights, answers, strict=True):
        ids = torch.tensor([[*answer.prompt, *answer.response]])
        logp = model(ids).logits[0, len(answer.prompt) - 1 : -1].log_softmax(-1)
        (weight * logp.gather(1, torch.tensor(answer.response)[:, None]).sum()).backward()
    return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "rloo"])
def test_the_first_gradient_is_the_methods_own(
    policy: Artifact, given: Given, build: Build, sampler: None, method: str
) -> None:
    """At the reference the KL has no gradient, so that only advantages and how tokens are averaged are left."""
    made = build(
        Grpo,
        {"policy": policy, "prompts": given("Prompt", PROMPTS)},
        method=method, rules=RULES, iterations=1, rollouts=32, samples=4, max_tokens=4, beta=0.1, lr=1e-6,
        missing_eos=0.5,
    )  # fmt: skip
    rows = kept(made)
    ended = np.array([r["finish_reason"] == "stop" for r in rows])
    score_GK = (np.array([r["score"] for r in rows]) - 0.5 * ~ended).reshape(-1, 4)
    centred_GK = score_GK - score_GK.mean(1, keepdims=True)
    length = np.array([len(r["token_ids"]) for r in rows])
    if method == "rloo":
        centred_GK = np.stack([score_GK[:, i] - np.delete(score_GK, i, 1).mean(1) for i in range(4)], 1)
    if method in ("grpo", "dapo"):
        centred_GK = centred_GK / (score_GK.std(1, ddof=1, keepdims=True) + 1e-4)
    advantage = centred_GK.flatten()
    if method == "dapo":
        # Cut answers do not count, neither above nor below the line. (One cut right after a pad token is whole to TRL.)
        ended = np.array([r["token_ids"][-1] in (0, 1) for r in rows])
        advantage = np.where(ended, advantage, 0)
    scale = {"grpo": 32 * length, "dapo": length[ended].sum(), "dr_grpo": 32 * 4, "rloo": 32 * 4}[method]
    assert curve(made, "grad_norm")[0] == pytest.approx(gradient_norm(advantage / scale, answers_of(rows)), rel=1e-3)
    assert curve(made, "sampler_gap_max")[0] < 1e-4


@pytest.mark.parametrize("kl", ["loss", "reward"])
def test_the_reference_is_the_one_that_was_given(
    policy: Artifact, other: Artifact, given: Given, build: Build, sampler: None, kl: str
) -> None:
    from transformers import AutoModelForCausalLM

    made = build(
        Grpo,
        {"policy": policy, "reference": other, "prompts": given("Prompt", PROMPTS)},
        rules=RULES, iterations=1, rollouts=16, samples=4, max_tokens=4, beta=0.1, lr=1e-6, kl=kl,
    )  # fmt: skip
    answers = answers_of(kept(made))
    ours, theirs = (
        token_logprobs(AutoModelForCausalLM.from_pretrained(a.path).eval(), answers) for a in (policy, other)
    )
    log_r = [t - o for o, t in zip(ours, theirs, strict=True)]
    if kl == "reward":
        expected = np.mean([-float(r.sum()) for r in log_r])
    else:
        tokens = torch.cat(log_r)
        expected = float((tokens.exp() - 1 - tokens).mean())
    assert curve(made, "kl")[0] == pytest.approx(expected, rel=1e-3) and abs(expected) > 0.01


def test_an_adapter_learns_and_its_base_stays(policy: Artifact, given: Given, build: Build, sampler: None) -> None:
    made = build(
        Grpo,
        {"policy": policy, "prompts": given("Prompt", PROMPTS)},
        method="rloo", rules={"right": "completion LIKE '%blue%'"}, iterations=20, rollouts=128, max_tokens=4, lr=3e-2,
        beta=0.02, missing_eos=0.2, minibatches=4, epochs=2, lora={"r": 8, "alpha": 16},
    )  # fmt: skip
    right = curve(made, "right")
    assert right[0] < 0.25 and right[-1] > 0.6
    assert max(curve(made, "sampler_gap_max")) < 1e-4
    assert curve(made, "kl")[0] == pytest.approx(0, abs=1e-4) and curve(made, "kl")[-1] > 0.5


def test_what_cannot_be_is_refused(policy: Artifact, other: Artifact, given: Given, build: Build) -> None:
    with pytest.raises(ValidationError, match=r"`samples` \(5\) must divide `rollouts` \(128\)"):
        Grpo(samples=5)
    with pytest.raises(UserError, match="the reference is the policy without its adapter"):
        build(
            Grpo,
            {"policy": policy, "reference": other, "prompts": given("Prompt", PROMPTS)},
            rules=RULES, lora={"r": 4}, max_tokens=4,
        )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, policy: Artifact, given: Given, store: Store) -> None:
    made = given("Prompt", PROMPTS)
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.rl.grpo_stage:Grpo",
        "imports": killed.VLLM,
        "config": {"seed": 3, "iterations": 4, "rollouts": 32, "max_tokens": 4, "lr": 3e-3, "minibatches": 2,
                   "epochs": 2, "rules": {"right": "completion = reference"}},
        "inputs": {"policy": {"p": ["Model", str(policy.path)]}, "prompts": {"d": ["", made.id]}},
    }  # fmt: skip
    killed.start(spec, tmp_path, kill_at=6)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None
    assert resumed.manifest["summary"]["consumed"] == whole.manifest["summary"]["consumed"]
    assert resumed.digest == whole.digest
