"""What the sampler says a token's log-probability was is what the trainer computes, after every swap of weights.

The trap: with a tied output head, swapping all named parameters leaves vLLM sampling from the old head.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generators.vllm_backend import Sampling, VllmEngine
from tests.training import tiny_chat
from tests.training.tiny_chat import one_thread
from training.answers import Answer
from training.logprobs import token_logprobs

__all__ = ["one_thread"]  # applies to every test here


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_sampler_and_trainer_agree_over_fifty_swaps(tmp_path: Path, tied: bool) -> None:
    folder = tiny_chat.save(tmp_path / "policy", tied=tied)
    policy = tiny_chat.policy(tied=tied)
    prompts = [[2, 5 + i, 6, 1, 3] for i in range(8)]
    random = torch.Generator().manual_seed(0)
    worst, moved = 0.0, 0.0
    last: tuple[list[Answer], list[torch.Tensor]] = ([], [])
    with VllmEngine(str(folder), dtype="float32", max_model_len=64, kv_cache_gib=1) as engine:
        for swap in range(50):
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
            engine.load_weights(policy.named_parameters())
            seeds = [100 * swap + i for i in range(8)]
            found = engine.generate(prompts, Sampling(max_tokens=8), seeds)
            answers = [Answer(p, c.token_ids) for p, c in zip(prompts, found, strict=True)]
            ours = token_logprobs(policy, answers)
            for mine, c in zip(ours, found, strict=True):
                assert c.logprobs is not None
                worst = max(worst, float((mine - torch.tensor(c.logprobs)).abs().max()))
            # the weights did change: the answers of last time have other probabilities now
            for now, then in zip(token_logprobs(policy, last[0]), last[1], strict=True):
                moved = max(moved, float((now - then).abs().max()))
            last = (answers, ours)
    assert worst < 1e-4 and moved > 0.1
