"""Attention by document against torch's own, with the mask of a packed row written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from training.sft.document_attention import NAME, attend_by_document, by_document

CUTS = torch.tensor([0, 1, 6, 17])


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("groups", [4, 2])
def test_equals_a_mask(window: int | None, groups: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 17, 8).requires_grad_() for heads in (4, groups, groups))
    at = torch.arange(17)
    document = torch.bucketize(at, CUTS[1:-1], right=True)
    mask = (document[:, None] == document) & (at[:, None] >= at) & (at[:, None] - at < (window or 17))
    expected = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)
    found, _ = by_document(None, q, k, v, None, cu_seq_lens_q=CUTS, sliding_window=window)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), gradient), torch.autograd.grad(expected, (q, k, v), gradient), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_packed_documents_do_not_see_each_other() -> None:
    """The logits of each document in a packed row are those it has alone."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    ids = torch.randint(50, (1, 17))
    with torch.no_grad():
        alone = [model(ids[:, a:b]).logits for a, b in pairwise(CUTS)]
        attend_by_document(model)
        assert model.config._attn_implementation == NAME
        positions = torch.cat([torch.arange(int(length)) for length in CUTS.diff()])[None]
        packed = model(ids, position_ids=positions, cu_seq_lens_q=CUTS).logits
    torch.testing.assert_close(packed, torch.cat(alone, 1))
