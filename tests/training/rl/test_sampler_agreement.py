"""What the sampler says a token's log-probability was is what the trainer computes, after every swap of weights.

The traps: with a tied output head, swapping all named parameters leaves vLLM sampling from the old head; an adapter that is
merged and taken out again leaves rounding behind in its base.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from generators.backends.protocol import Sampling
from generators.backends.vllm.engine import VllmEngine
from tests.training import tiny_chat
from tests.training.tiny_chat import one_thread
from training.models.answers import Answer
from training.models.logprobs import token_logprobs
from training.models.lora import peft_config
from training.models.lora_settings import Lora
from training.rl.sampler import weights

__all__ = ["one_thread"]  # applies to every test here


def adapted(policy: Any, **options: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(0)
    return get_peft_model(policy, peft_config(Lora(r=4, **options))).eval()


class Gaps(NamedTuple):
    """The largest differences in nats a token, over all swaps.

    Attributes:
        apart: between sampler and trainer.
        off: between the sampler and the same model in float64, unmerged.
        moved: between a token's log-probability before and after a swap.
    """

    apart: float
    off: float
    moved: float


def worst_gap(folder: Path, tied: bool, lora: bool, swaps: int, seed: int = 0) -> Gaps:
    """Sampler against trainer while the weights walk at random.

    Every swap moves each weight by 0.05, to 0.35 after 50 (they started at 0.1). An adapter's two factors take steps of 0.02,
    so that the weights with its update (8 BA) end as far from where they were: 0.4. With steps of 0.05 they would be 2 away
    and hidden states in the thousands: there the trainer's own float32 is 6e-4 from its float64, and rounding merged
    weights to float32 changes log-probabilities by 3e-4, whoever computes them.
    """
    tiny_chat.save(folder, tied=tied)
    policy = tiny_chat.policy(tied=tied)
    if lora:
        policy = adapted(policy)
    prompts = [[2, 5 + i, 6, 1, 3] for i in range(8)]
    random = torch.Generator().manual_seed(seed)
    apart, off, moved = 0.0, 0.0, 0.0
    last: tuple[list[Answer], list[torch.Tensor]] = ([], [])
    with VllmEngine(str(folder), dtype="float32", max_model_len=64, kv_cache_gib=1) as engine:
        for swap in range(swaps):
            with torch.no_grad():
                for parameter in policy.parameters():
                    if parameter.requires_grad:
                        parameter.add_((0.02 if lora else 0.05) * torch.randn(parameter.shape, generator=random))
            engine.load_weights(weights(policy))
            seeds = [100 * swap + i for i in range(8)]
            found = engine.generate(prompts, Sampling(max_tokens=8), seeds)
            answers = [Answer(p, c.token_ids) for p, c in zip(prompts, found, strict=True)]
            ours, exact = token_logprobs(policy, answers), token_logprobs(copy.deepcopy(policy).double(), answers)
            for mine, truth, c in zip(ours, exact, found, strict=True):
                assert c.logprobs is not None
                sampled = torch.tensor(c.logprobs)
                apart = max(apart, float((mine - sampled).abs().max()))
                off = max(off, float((truth - sampled).abs().max()))
            # the weights did change: the answers of last time have other probabilities now
            for now, then in zip(token_logprobs(policy, last[0]), last[1], strict=True):
                moved = max(moved, float((now - then).abs().max()))
            last = (answers, ours)
    return Gaps(apart, off, moved)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_sampler_and_trainer_agree_over_fifty_swaps(tmp_path: Path, tied: bool, lora: bool) -> None:
    gaps = worst_gap(tmp_path / "policy", tied, lora, swaps=50)
    assert gaps.apart < 1e-4 and gaps.off < 1e-4 and gaps.moved > 0.1


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
def test_merged_tensors_answer_as_the_adapter_does_and_leave_the_base_as_it_was(options: dict[str, Any]) -> None:
    base = {name: tensor.clone() for name, tensor in tiny_chat.policy().named_parameters()}
    policy = adapted(tiny_chat.policy(), **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    with torch.no_grad():
        merged = tiny_chat.policy()
        missing = merged.load_state_dict(dict(weights(policy)), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    answers = [Answer([2, 5, 6, 1, 3], [7, 8, 9, 1])]
    assert torch.allclose(token_logprobs(merged, answers)[0], token_logprobs(policy, answers)[0], atol=1e-5)
    with policy.disable_adapter():
        assert torch.equal(token_logprobs(policy, answers)[0], token_logprobs(tiny_chat.policy(), answers)[0])
    inner = {n.replace(".base_layer", ""): t for n, t in policy.get_base_model().named_parameters() if "lora" not in n}
    assert all(torch.equal(inner[name], tensor) for name, tensor in base.items())
