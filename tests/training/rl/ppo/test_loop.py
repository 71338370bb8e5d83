"""A real vLLM engine that learns, is guarded, samples ahead and survives SIGKILL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.parquet import read_parquet
from engine.store.store import Store
from tests.training import killed, tiny_chat
from tests.training.curves import curve
from tests.training.tiny_chat import PROMPTS, one_thread
from training.rl.ppo.stage import Ppo

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


def test_rollouts_that_cannot_be_cut_and_idle_options_are_refused() -> None:
    assert Ppo(rollouts=4, minibatches=4).minibatches == 4
    with pytest.raises(
        ValueError, match="`value_weight` is for a critic that is trained; `critic: fitted` trains none"
    ):
        Ppo(value_weight=0.1)
    with pytest.raises(ValueError, match=r"`samples` \(3\) must divide `rollouts` \(4\)"):
        Ppo(rollouts=4, minibatches=4, samples=3)
    with pytest.raises(ValueError, match="4 `rollouts` can't be cut into 8 `minibatches`"):
        Ppo(rollouts=4, minibatches=8)


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_runs(
    policy: Artifact, given: Given, build: Build
) -> None:
    with pytest.raises(UserError, match=r"prompt prompt0 has \d+ tokens; .*context of 128"):
        build(Ppo, {"policy": policy, "prompts": given("Prompt", PROMPTS)}, rules={"a": "1"}, max_tokens=125)


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "shared", "lr": 5e-3},
        {"critic": "separate", "lr": 5e-3},
        {"critic": "fitted", "lr": 3e-2, "lora": {"r": 8, "alpha": 16}, "rules": {"right": "completion LIKE '%blue%'"}},
    ],
    ids=["shared", "separate", "lora"],
)
def test_it_learns_a_trivial_reward_with_a_real_engine(
    policy: Artifact, given: Given, build: Build, sampler: None, options: dict[str, Any]
) -> None:
    """Answers are drawn from 28 nearly equal words at first; "blue" and then the end is what pays. An adapter, whose
    frozen head can't make any word certain, is paid for a "blue" anywhere."""
    made = build(
        Ppo,
        {"policy": policy, "prompts": given("Prompt", PROMPTS)},
        iterations=20,
        rollouts=128,
        max_tokens=4,
        beta=0.02,
        stop_kl=None,
        missing_eos=0.2,
        **{"rules": {"right": "completion = reference"}, **options},
    )
    right = curve(made, "right")
    assert right[0] < 0.25 and right[-1] > (0.6 if "lora" in options else 0.8)
    # the sampler's and the trainer's log-probabilities agree after every swap of weights
    assert max(curve(made, "sampler_gap_max")) < 1e-4
    assert curve(made, "kl")[0] == pytest.approx(0, abs=1e-4) and curve(made, "kl")[-1] > 1


def test_the_guard_keeps_the_policy_that_held_out_answers_like_best(
    policy: Artifact, given: Given, build: Build, sampler: None
) -> None:
    """The reward likes blue, which is what should not be said."""
    made = build(
        Ppo,
        {"policy": policy, "prompts": given("Prompt", PROMPTS[:4]), "held_out": given("Prompt", PROMPTS[4:])},
        rules={"blues": "LENGTH(completion) - LENGTH(REPLACE(completion, 'blue', ''))"},
        gold={"none": "LENGTH(REPLACE(completion, 'blue', '')) - LENGTH(completion)"},
        gold_every=1,
        guard={"patience": 2},
        iterations=25,
        rollouts=64,
        max_tokens=4,
        lr=1e-2,
        beta=0.01,
        stop_kl=None,
        missing_eos=0.0,
    )
    summary, gold = made.manifest["summary"], curve(made, "gold")
    assert summary["kept_iteration"] == int(np.argmax(gold)) and "below its best" in summary["stopped"]
    assert summary["episodes"] == 64 * (len(gold) - 1) < 64 * 25  # it was stopped, and the last look taught nothing
    from transformers import AutoModelForCausalLM

    if summary["kept_iteration"] == 0:
        best, start = (AutoModelForCausalLM.from_pretrained(a.path) for a in (made, policy))
        assert all(torch.equal(a, b) for a, b in zip(best.parameters(), start.parameters(), strict=True))


def test_ahead_samples_are_those_of_the_policy_before_the_step_under_way(
    policy: Artifact, given: Given, build: Build, sampler: None
) -> None:
    """Three iterations: the first two are sampled from the start, as if nothing were learnt; the third is not."""
    prompts = given("Prompt", PROMPTS)

    def texts(**options: Any) -> list[list[str]]:
        made = build(
            Ppo, {"policy": policy, "prompts": prompts}, iterations=3, rollouts=32, max_tokens=4, stop_kl=None,
            decay=False, rules={"right": "completion = reference"}, **options,
        )  # fmt: skip
        files = sorted((made.path / "rollouts").glob("*.parquet"))
        return [read_parquet(file).column("completion").to_pylist() for file in files]

    still, ahead, here = texts(lr=1e-12), texts(lr=3e-2, ahead=True), texts(lr=3e-2)
    assert ahead[:2] == still[:2] and ahead[2] != still[2]
    assert here[0] == still[0] and here[1] != still[1]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, policy: Artifact, given: Given, store: Store) -> None:
    made = given("Prompt", PROMPTS)
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.rl.ppo.stage:Ppo",
        "imports": killed.VLLM,
        "config": {"seed": 3, "iterations": 6, "rollouts": 32, "max_tokens": 4, "lr": 3e-3, "target": 1.0,
                   "rules": {"right": "completion = reference"}},
        "inputs": {"policy": {"p": ["Model", str(policy.path)]}, "prompts": {"d": ["", made.id]}},
    }  # fmt: skip
    killed.start(spec, tmp_path, kill_at=2)
    killed.start(spec, tmp_path, kill_at=5)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None
    assert resumed.manifest["summary"]["consumed"] == whole.manifest["summary"]["consumed"]
    assert resumed.digest == whole.digest
