"""What is replaced in TRL is there to be replaced, and says what TRL's own says."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import trl.trainer.utils as utils

from tests.training import tiny_chat
from tests.training.tiny_chat import one_thread
from training.loops.patches import score_learnt_tokens

__all__ = ["one_thread"]  # applies to every test here


def test_trls_output_layer_says_the_same_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.kernels import ChunkedLogProbFunction
    from trl.kernels.chunked_logprob import _use_triton

    source = inspect.getsource(utils.add_fused_lm_head)
    assert source.count("_ChunkedLogProbFunction.apply(") == source.count("_use_triton(") == 1
    ids = torch.randint(5, 28, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(9)[None] < 4, -100)
    found: list[Any] = []
    for ours in (False, True):
        monkeypatch.setattr(utils, "_ChunkedLogProbFunction", ChunkedLogProbFunction)
        monkeypatch.setattr(utils, "_use_triton", _use_triton)
        if ours:
            score_learnt_tokens()
        model = tiny_chat.policy()
        utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        made = model(input_ids=ids, labels=labels, fused_lm_head=True)
        (made.log_probs.sum() + 0.3 * made.entropy.sum()).backward()
        found.append(
            [made.log_probs, made.entropy, made.mean_logits, made.is_top1, *(p.grad for p in model.parameters())]
        )
    for theirs, own in zip(*found, strict=True):
        assert torch.allclose(theirs.double(), own.double(), atol=1e-5)
