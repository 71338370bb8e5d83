"""Attention within each document of a packed row, at the cost of the documents and not of the row.

A mask over a row of N tokens costs N x N scores, most of them thrown away. Here every document is attended to by itself,
so that k documents of L tokens cost k L^2 instead of (k L)^2, and the kernel needs no mask: causality alone is left.

Shapes: B = 1 row, H query heads, T tokens of the row, E head width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

NAME = "flywheel_documents"


def by_document(
    module: Any, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, cu_seq_lens_q: Tensor | None = None, sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As transformers calls its attention functions; the answer is (B, T, H, E).

    Args:
        cu_seq_lens_q: where documents start, and the length of the row, as TRL's padding-free collator gives them.
    """
    ends = [0, q_BHTE.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    gqa = q_BHTE.shape[1] != k_BHTE.shape[1]
    parts: list[Tensor] = []
    for start, end in pairwise(ends):
        q, k, v = (t[:, :, start:end] for t in (q_BHTE, k_BHTE, v_BHTE))
        band = None
        if sliding_window and end - start > sliding_window:
            band = (
                torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
            )
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, band, dropout_p=dropout, is_causal=band is None, scale=scaling, enable_gqa=gqa
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def attend_by_document(model: Any) -> None:
    """Have a transformers model do so. It makes no mask for a function that it has none registered for."""
    AttentionInterface.register(NAME, by_document)
    model.set_attn_implementation(NAME)
