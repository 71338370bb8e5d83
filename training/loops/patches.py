"""What is changed in other libraries.

- TRL 1.16, `trl.trainer.utils`: without Triton its output layer scores every token, the prompt's and the padding, in pieces of 4,096
  tokens x 32,768 ids of which some six copies are held at once: 512 MiB each, and most of the time of a step on a CPU. It has no
  setting for either. Without a GPU the tokens that are learnt from are scored, by `training.models.output_head`. It can go once TRL
  scores as little (`tests/training/loops/test_patches.py` names what is replaced).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from training.models.output_head import Scaling, TokenScores


class Slices:
    """Called as TRL calls its `ChunkedLogProbFunction`."""

    @staticmethod
    def apply(
        hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, temperature: float, chunk: int,
        softcap: float | None, factor: float, outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """(log-probability, entropy, nothing, mean logit before a softcap, whether the target is the likeliest) of each token."""
        assert temperature == 1.0  # no stage of ours has another
        found: Any = TokenScores.apply(
            hidden_ND, weight_VD, bias_V, targets_N, Scaling(factor, softcap), "entropy" in outputs
        )
        logprobs_N, entropy_N, first_N = found
        mean_N = None
        if "mean_logits" in outputs:
            with torch.no_grad():  # the mean of products is the product with the mean
                mean_N = factor * (hidden_ND.float() @ weight_VD.mean(0, dtype=torch.float32))
                if bias_V is not None:
                    mean_N += factor * bias_V.mean()
        return logprobs_N, entropy_N, None, mean_N, first_N if "is_top1" in outputs else None


def score_learnt_tokens() -> None:
    """Have TRL's output layer score what is learnt from, in slices, in this process from now on, if it is without a GPU."""
    if torch.cuda.is_available():
        return
    utils: Any = import_module("trl.trainer.utils")
    utils._ChunkedLogProbFunction = Slices
    utils._use_triton = lambda device: True  # it asks in one place: whether to leave out what is not learnt from
