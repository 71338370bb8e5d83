"""PPO: its loss by hand, its rewards where they belong, and a real vLLM engine that learns and survives SIGKILL."""

from __future__ import annotations

import math
import shutil
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
from generators.rules.verify import measure
from tests.training import killed, tiny_chat
from tests.training.curves import curve
from tests.training.tiny_chat import PROMPTS, one_thread, user
from training.critic import Critic
from training.models.answers import Answer
from training.models.padding import pad
from training.ppo import Experience, Ppo, token_rewards
from training.reward_function import Scorer, frame
from training.rollouts import Question, Rollout, consumed, draw, keep

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


def test_the_score_lands_on_the_last_token_of_each_answer() -> None:
    mask_BR = torch.tensor([[True, True, True], [True, False, False]])
    kl_BR = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])
    found = token_rewards(kl_BR, torch.tensor([10.0, 20.0]), mask_BR, beta=0.1)
    assert found.flatten().tolist() == pytest.approx([-0.1, -0.2, 9.7, 19.6, 0.0, 0.0])


ANSWERS = [Answer([5, 6], [7, 8, 1]), Answer([5], [9, 1])]


def experience() -> Experience:
    mask_BR = pad(ANSWERS).mask_BR
    random = torch.Generator().manual_seed(0)

    def draw_BR() -> torch.Tensor:
        return torch.where(mask_BR, torch.randn(2, 3, generator=random), 0.0)

    old_BR = torch.where(mask_BR, -3.3 + 0.3 * draw_BR(), 0.0)
    return Experience(ANSWERS, mask_BR, old_BR, old_BR, old_BR, draw_BR(), old_BR, draw_BR(), draw_BR())


def test_the_loss_is_the_formula_worked_out_token_by_token() -> None:
    model, old = tiny_chat.policy(), experience()
    critic = Critic(32)
    torch.manual_seed(1)
    torch.nn.init.normal_(critic.head.weight)
    stage = Ppo(value_weight=0.7, entropy_weight=0.01, clip=0.2, clip_value=0.3)
    weights_BR = torch.tensor([[1.0, 0.5, 2.0], [1.5, 1.0, 0.0]])
    loss, parts = stage.loss(model, critic, old, weights_BR, np.array([0, 1]))

    expected = clipped = 0.0
    rms = math.sqrt(float((old.returns_BR[old.mask_BR] ** 2).mean()))
    for b, answer in enumerate(ANSWERS):
        ids = [*answer.prompt, *answer.response]
        out = model(torch.tensor([ids]), output_hidden_states=True)
        for r, token in enumerate(answer.response):
            t = len(answer.prompt) - 1 + r
            logp = out.logits[0, t].log_softmax(-1)
            ratio = math.exp(logp[token].item() - old.logprobs_BR[b, r].item())
            a = old.advantages_BR[b, r].item()
            expected -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a) * weights_BR[b, r].item()
            clipped += ratio * a > min(max(ratio, 0.8), 1.2) * a
            value = critic.head(out.hidden_states[-1][0, t]).item()
            before, target = old.values_BR[b, r].item(), old.returns_BR[b, r].item()
            near = before + min(max(value - before, -0.3 * rms), 0.3 * rms)
            expected += 0.7 * 0.5 * max((value - target) ** 2, (near - target) ** 2) / rms**2
            expected += 0.01 * (logp.exp() * logp).sum().item()
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert parts["clip_fraction"] == clipped


def test_before_the_first_step_the_gradient_is_that_of_the_policy_gradient_theorem() -> None:
    """rho = 1 everywhere, so d loss / d theta = -E[A d log pi]."""
    from training.models.logprobs import forward

    model, old = tiny_chat.policy(), experience()
    with torch.no_grad():
        now_BR = torch.where(old.mask_BR, forward(model, pad(ANSWERS)).logprobs_BR, 0.0)
    old = Experience(*[now_BR if name == "logprobs_BR" else getattr(old, name) for name in Experience.__annotations__])
    loss, parts = Ppo(value_weight=0).loss(model, Critic(32), old, torch.ones(2, 3), np.array([0, 1]))
    loss.backward()
    ours = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    (-(torch.where(old.mask_BR, forward(model, pad(ANSWERS)).logprobs_BR, 0.0) * old.advantages_BR).sum()).backward()
    assert torch.allclose(ours, model.model.embed_tokens.weight.grad, atol=1e-5)
    assert parts["clip_fraction"] == 0 and parts["step_kl"] == pytest.approx(0, abs=1e-9)


def test_critics_start_at_zero_and_read_where_the_token_is_chosen() -> None:
    model, batch = tiny_chat.policy(), pad(ANSWERS)
    from training.models.logprobs import forward

    shared, separate = Critic(32), Critic(32, tiny_chat.policy().model)
    hidden_BRD = forward(model, batch, hidden=True).hidden_BRD
    assert (shared(batch, hidden_BRD) == 0).all() and (separate(batch, None) == 0).all()
    torch.nn.init.normal_(shared.head.weight)
    separate.head.load_state_dict(shared.head.state_dict())
    mask = batch.mask_BR
    assert torch.allclose(shared(batch, hidden_BRD)[mask], separate(batch, None)[mask], atol=1e-5)


def test_every_prompt_is_drawn_once_a_pass_whatever_the_iteration_that_starts_it() -> None:
    drawn = [i for iteration in range(7) for i in draw(10, 4, iteration, seed=5)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10)) and drawn[:10] != drawn[10:20]
    assert draw(3, 8, 2, seed=5) == [i for k in range(3) for i in draw(3, 8, k, seed=5)][16:]


def question(text: str = "what ?") -> Question:
    return Question("q", user(text), "blue", [2, 5, 1, 3])


def test_an_answer_that_was_cut_is_scored_with_its_turn_closed() -> None:
    from training.reward.model import RewardModel

    reward = RewardModel(None, tiny_chat.tokenizer(), torch.zeros(1), 1.0)
    scorer = Scorer(reward, {}, {})
    cut, ended = (
        Rollout(question(), [7, 8], "blue green", "length"),
        Rollout(question(), [7, 8, 1], "blue green", "stop"),
    )
    assert scorer.read(cut) == scorer.read(ended) == Answer([2, 5, 1, 3], [7, 8, 1])
    # another tokenizer reads the text: the same here, since it is the same tokenizer
    assert Scorer(reward, {}, {}, same_tokens=False).read(Rollout(question(), [7], "blue", "stop")).response[-1] == 1


def test_rules_count_as_numbers_and_bad_ones_are_refused() -> None:
    rollouts = [Rollout(question(), [7, 1], "blue", "stop"), Rollout(question(), [7, 8, 9], "red green", "length")]
    scorer = Scorer(
        None,
        {"right": "completion = reference", "short": "-1.0 * length", "done": "finish_reason = 'stop'"},
        {"short": 0.1},
    )
    scores, parts = scorer.score(rollouts)
    assert scores.tolist() == pytest.approx([1 - 0.2 + 1, 0 - 0.3 + 0])
    assert parts == {"right": 0.5, "short": -2.5, "done": 0.5}
    assert measure("1", frame(rollouts), "x").tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match="NaN or infinite for 1 of 2"):
        measure("LN(length - 2)", frame(rollouts), "bad")
    with pytest.raises(UserError, match="a rule gives a number, or true or false"):
        measure("completion", frame(rollouts), "bad")
    with pytest.raises(UserError, match="nothing says what an answer is worth"):
        Scorer(None, {}, {})
    with pytest.raises(UserError, match="`weights` names sohrt"):
        Scorer(None, {"short": "1"}, {"sohrt": 1.0})


def test_more_minibatches_than_rollouts_are_refused() -> None:
    assert Ppo(rollouts=4, minibatches=4).minibatches == 4
    with pytest.raises(ValueError, match="4 `rollouts` can't be cut into 8 `minibatches`"):
        Ppo(rollouts=4, minibatches=8)


def test_what_was_learnt_from_is_kept_in_order_and_told_by_its_digest(store: Store) -> None:
    from engine.stage.job import Job

    a, b = Rollout(question(), [7], "red", "stop"), Rollout(question(), [8], "blue", "length")

    def told(*iterations: list[Rollout]) -> str:
        job = Job(store, f"job{len(list(store.walk('scratch')))}-{iterations!r:.40}".replace("/", ""), "Model", {}, 0)
        shutil.rmtree(job.scratch, ignore_errors=True)
        for number, rollouts in enumerate(iterations):
            keep(job, number, rollouts, np.array([1.0] * len(rollouts)))
            keep(job, number, rollouts, np.array([1.0] * len(rollouts)))  # a repeated iteration replaces itself
        return consumed(job)[0]

    assert told([a, b]) != told([b, a]) and told([a, b]) == told([a], [b]) != told([a])


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
        {"critic": "shared", "lr": 3e-2, "lora": {"r": 8, "alpha": 16}, "rules": {"right": "completion LIKE '%blue%'"}},
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
        "stage": "training.ppo:Ppo",
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
