"""How well a model that is being trained foresees text, and how it goes on with a prompt.

Shapes: B blocks of a batch, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from training.pretrain.llama import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cross_entropy(
    model: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]], bytes_V: np.ndarray
) -> tuple[float, int, int]:
    """Summed cross-entropy in nats over text (special tokens are not scored), number of targets, bytes they stand for."""
    table_V = torch.from_numpy(bytes_V)
    nats, targets, size = 0.0, 0, 0
    with torch.no_grad():
        for tokens_BT, targets_BT, documents_BT in batches:
            lengths_V = table_V.to(targets_BT.device)
            lengths_BT = torch.where(targets_BT == IGNORE, 0, lengths_V[targets_BT.clamp(min=0)])
            scored_BT = torch.where(lengths_BT > 0, targets_BT, IGNORE)
            nats += float(model(tokens_BT, scored_BT, documents_BT))
            targets += int((scored_BT != IGNORE).sum())
            size += int(lengths_BT.sum())
    return nats, targets, size


def bits_per_byte(nats: float, size: int) -> float:
    """Cross-entropy in bits by byte of text: comparable between tokenizers (Gao et al. 2020, arXiv:2101.00027, 3.1)."""
    return nats / (math.log(2) * size)


def complete(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, count: int) -> str:
    """The likeliest continuation of at most `count` tokens. Draws nothing, so training goes on as if it had not been."""
    device = next(model.parameters()).device
    start = tokenizer.encode(prompt, add_special_tokens=False) or [cast(int, tokenizer.eos_token_id)]
    ids, context = list(start), cast(Any, model).config.max_position_embeddings
    with torch.no_grad():
        for _ in range(count):
            logits_1TV = model(torch.tensor([ids[-context:]], device=device))
            ids.append(int(logits_1TV[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return cast(str, tokenizer.decode(ids[len(start) :], skip_special_tokens=True))
