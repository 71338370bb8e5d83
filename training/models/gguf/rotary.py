"""Rotary embeddings whose angles are stretched for longer texts: transformers' `rope_parameters`, and what GGUF has for them.

GGUF states linear and YaRN scaling by keys, and Llama 3's by a tensor that holds the divisor of each frequency.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from engine.errors import UserError

DIVISORS = "rope_freqs.weight"
# What Llama 3.1, 3.2 and 3.3 were trained with: low and high frequency factor, context before it was stretched.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def divisors(rope: dict[str, Any], width: int) -> np.ndarray:
    """By how much Llama 3 divides each frequency of heads this wide, (width / 2).

    Long waves by `factor`, short ones not at all, and in between by a mean of both (as in transformers' `llama3`).
    """
    old, low, high = (
        rope[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((old / waves - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def stated(keys: dict[str, Any], tensor: np.ndarray | None, theta: float, width: int) -> dict[str, Any]:
    """`rope_parameters` of what a file says.

    Args:
        keys: the file's keys below `ARCHITECTURE.rope.scaling.`.
        tensor: the divisors, if it has some.
        theta: the base of the frequencies.
        width: of a head.

    Raises:
        UserError: transformers has no name for it.
    """
    kind = keys.get("type", "none")
    if tensor is not None:
        rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(tensor.max()), **LLAMA3}
        if kind == "none" and tensor.shape == (width // 2,) and np.allclose(divisors(rope, width), tensor, rtol=1e-3):
            return rope
        raise UserError(
            f"the file divides the rotary frequencies ({DIVISORS}) otherwise than Llama 3 does, which transformers can't be told. "
            "Start from the model's folder in the Hugging Face layout."
        )
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    rope = {"rope_type": kind, "rope_theta": theta, "factor": keys.get("factor")}
    if kind == "yarn" and "original_context_length" in keys:
        rope["original_max_position_embeddings"] = keys["original_context_length"]
    known = {"type", "factor", "finetuned", *({"original_context_length"} if kind == "yarn" else ())}
    if kind not in ("linear", "yarn") or rope["factor"] is None or set(keys) - known:
        raise UserError(
            f"the file stretches rotary embeddings in a way that is not known here: {keys}. Start from the model's folder in "
            "the Hugging Face layout."
        )
    return rope
