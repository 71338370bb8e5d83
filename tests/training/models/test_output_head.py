"""Scores in slices against the plain computation on whole logits, by torch's own autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny_chat import one_thread
from training.models import output_head
from training.models.answers import EncodedAnswer
from training.models.logprobs import forward
from training.models.output_head import Scaling, score
from training.models.padding import pad

__all__ = ["one_thread"]  # applies to every test here


def plain(hidden: torch.Tensor, head: Any, targets: torch.Tensor, scaling: Scaling) -> tuple[torch.Tensor, ...]:
    logits = head(hidden).float() * scaling.factor
    if scaling.softcap:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy, logits.argmax(-1) == targets


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(0.25), Scaling(2.0, 3.0)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weigh_entropy", [0.0, 0.7])
def test_scores_and_gradients_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, scaling: Scaling, bias: bool, weigh_entropy: float
) -> None:
    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", 5 * 97)  # slices of five tokens, the last one short
    torch.manual_seed(0)
    head, targets, by = nn.Linear(16, 97, bias=bias).double(), torch.randint(0, 97, (23,)), torch.randn(23).double()
    hidden = (torch.randn(23, 16) * 3).double().requires_grad_()
    found = []
    for made in (plain(hidden, head, targets, scaling), score(hidden, head, targets, scaling, entropy=True)):
        assert made[1] is not None
        loss = (made[0] * by).sum() + weigh_entropy * (made[1] * by.flip(0)).sum()
        wanted = [hidden, *head.parameters()]
        found.append([*(x.detach() for x in made), *torch.autograd.grad(loss, wanted)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)


def test_bfloat16_products_are_those_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", 5 * 97)
    torch.manual_seed(0)
    head, targets, hidden = nn.Linear(16, 97, bias=False), torch.randint(0, 97, (23,)), torch.randn(23, 16)
    hidden.requires_grad_()
    found = []
    for whole in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            logprobs = plain(hidden, head, targets, Scaling())[0] if whole else score(hidden, head, targets).logprobs_N
        found.append([logprobs.detach(), *torch.autograd.grad(logprobs.sum(), [hidden, head.weight])])
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0.02, atol=0.02)


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    head, hidden = nn.Linear(8, 31, bias=False).requires_grad_(False), torch.randn(4, 8, requires_grad=True)
    score(hidden, head, torch.arange(4)).logprobs_N.sum().backward()
    assert head.weight.grad is None and hidden.grad is not None


@pytest.mark.parametrize("name", ["Gemma2", "Cohere", "Granite", "Qwen3", "GPTNeoX"])
def test_what_models_do_to_their_logits_is_done_here(name: str) -> None:
    import transformers

    torch.manual_seed(0)
    small = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "initializer_range": 0.5,
    }  # fmt: skip
    own = {
        "Gemma2": {"final_logit_softcapping": 3.0},
        "Cohere": {"logit_scale": 0.3},
        "Granite": {"logits_scaling": 4.0},
    }
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**small, **own.get(name, {}))
    ).eval()
    answers = [EncodedAnswer([5, 6, 7], [8, 9, 1]), EncodedAnswer([5], [6])]
    scored = forward(model, pad(answers)).logprobs_BR
    for row, answer in enumerate(answers):
        ids = torch.tensor([[*answer.prompt, *answer.response]])
        logprobs = model(input_ids=ids).logits.float().log_softmax(-1)[0, len(answer.prompt) - 1 : -1]
        expected = logprobs.gather(1, ids[0, len(answer.prompt) :, None])[:, 0]
        assert torch.allclose(scored[row, : len(answer.response)], expected, atol=1e-5)
