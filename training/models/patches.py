"""What is changed in other libraries.

- PEFT 0.21, `LoraLayer`: what goes through an adapter is cast to the type of the adapter's weights, float32, although the product
  casts it back to autocast's bfloat16 at once. The numbers are the same; but each of a layer's seven adapters then keeps a copy of
  its own for the backward pass, and a float32 one comes and goes. It can go once PEFT looks whether autocast is on.
"""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

_cast = LoraLayer._cast_input_dtype  # pyright: ignore[reportPrivateUsage]


def leave_casts_to_autocast() -> None:
    """Have adapters hand their input to the product as it is where autocast is on, in this process from now on."""
    LoraLayer._cast_input_dtype = _as_it_is  # pyright: ignore


def _as_it_is(self: LoraLayer, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # Dropout and DoRA work on what they are given, in float32 as before.
    works = bool(self.lora_variant) or any(getattr(dropout, "p", 0) for dropout in self.lora_dropout.values())
    if x is None or works or not torch.is_autocast_enabled(x.device.type):
        return _cast(self, x, dtype)  # pyright: ignore
    return x
