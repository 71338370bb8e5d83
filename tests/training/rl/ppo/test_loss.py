"""PPO's loss by hand, and its rewards where they belong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training import tiny_chat
from tests.training.tiny_chat import one_thread
from training.models.answers import EncodedAnswer
from training.models.logprobs import forward
from training.models.padding import pad
from training.rl.critic import Critic
from training.rl.ppo.loss import Experience, loss, token_rewards
from training.rl.ppo.stage import Ppo

__all__ = ["one_thread"]  # applies to every test here


def test_the_score_lands_on_the_last_token_of_each_answer() -> None:
    mask_BR = torch.tensor([[True, True, True], [True, False, False]])
    kl_BR = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])
    found = token_rewards(kl_BR, torch.tensor([10.0, 20.0]), mask_BR, beta=0.1)
    assert found.flatten().tolist() == pytest.approx([-0.1, -0.2, 9.7, 19.6, 0.0, 0.0])


ANSWERS = [EncodedAnswer([5, 6], [7, 8, 1]), EncodedAnswer([5], [9, 1])]


def experience() -> Experience:
    mask_BR = pad(ANSWERS).mask_BR
    random = torch.Generator().manual_seed(0)

    def draw_BR() -> torch.Tensor:
        return torch.where(mask_BR, torch.randn(2, 3, generator=random), 0.0)

    old_BR = torch.where(mask_BR, -3.3 + 0.3 * draw_BR(), 0.0)
    values_BR, advantages_BR, returns_BR = draw_BR(), draw_BR(), draw_BR()
    weights_BR = torch.tensor([[1.0, 0.5, 2.0], [1.5, 1.0, 0.0]])
    scale = math.sqrt(float((returns_BR[mask_BR] ** 2).mean()))
    return Experience(
        ANSWERS, mask_BR, old_BR, old_BR, old_BR, weights_BR, values_BR, old_BR, advantages_BR, returns_BR, scale
    )


def test_the_loss_is_the_formula_worked_out_token_by_token() -> None:
    model, old = tiny_chat.policy(), experience()
    critic = Critic(32)
    torch.manual_seed(1)
    torch.nn.init.normal_(critic.head.weight)
    stage = Ppo(critic="shared", value_weight=0.7, entropy_weight=0.01, clip=0.2, clip_value=0.3)
    now = forward(model, pad(ANSWERS), entropy=True, hidden=True)
    found, parts = loss(now, critic(pad(ANSWERS), now.hidden_BRD), old, stage)

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
            expected -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a) * old.weights_BR[b, r].item()
            clipped += ratio * a > min(max(ratio, 0.8), 1.2) * a
            value = critic.head(out.hidden_states[-1][0, t]).item()
            before, target = old.values_BR[b, r].item(), old.returns_BR[b, r].item()
            near = before + min(max(value - before, -0.3 * rms), 0.3 * rms)
            expected += 0.7 * 0.5 * max((value - target) ** 2, (near - target) ** 2) / rms**2
            expected += 0.01 * (logp.exp() * logp).sum().item()
    assert found.item() == pytest.approx(expected, abs=1e-4)
    assert parts["clip_fraction"] == clipped


def test_before_the_first_step_the_gradient_is_that_of_the_policy_gradient_theorem() -> None:
    """rho = 1 everywhere, so d loss / d theta = -E[A d log pi]."""
    model, old = tiny_chat.policy(), experience()
    with torch.no_grad():
        now_BR = torch.where(old.mask_BR, forward(model, pad(ANSWERS)).logprobs_BR, 0.0)
    old = replace(old, logprobs_BR=now_BR, weights_BR=torch.ones(2, 3))
    now = forward(model, pad(ANSWERS), hidden=True)
    found, parts = loss(now, None, old, Ppo())
    found.backward()
    ours = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    (-(torch.where(old.mask_BR, forward(model, pad(ANSWERS)).logprobs_BR, 0.0) * old.advantages_BR).sum()).backward()
    assert torch.allclose(ours, model.model.embed_tokens.weight.grad, atol=1e-5)
    assert parts["clip_fraction"] == 0 and parts["step_kl"] == pytest.approx(0, abs=1e-9)
    assert "value_loss" not in parts  # nobody learns values


def test_some_rollouts_of_an_experience_are_as_wide_as_the_longest_of_them() -> None:
    old = experience()
    one, turned = old.of(np.array([1])), old.of(np.array([1, 0]))
    assert one.answers == [ANSWERS[1]] and torch.equal(one.returns_BR, old.returns_BR[1:, :2]) and one.mask_BR.all()
    assert turned.answers == ANSWERS[::-1] and torch.equal(turned.values_BR, old.values_BR.flip(0))
    assert one.scale == turned.scale == old.scale  # the unit is that of all rollouts
