"""What this machine multiplies fast."""

from __future__ import annotations

from typing import Any

import torch


def has_bfloat16_units() -> bool:
    """Whether bfloat16 products are faster than float32 ones here: a recent GPU, or a CPU with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
