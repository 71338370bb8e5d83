"""Products in bfloat16 around weights that stay as they are, and activations that are made twice instead of kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from training.hardware.bfloat16 import has_bfloat16_units

if TYPE_CHECKING:
    from training.models.precision_settings import Precision


def products(dtype: Precision) -> torch.dtype:
    """The type of matrix products that a recipe's word stands for on this machine."""
    half = dtype == "bfloat16" or (dtype == "auto" and has_bfloat16_units())
    return torch.bfloat16 if half else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Within this, products are of this type."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def recompute_layers(model: Any) -> None:
    """Have a model without dropout make its activations again in the backward pass, layer by layer."""
    model.enable_input_require_grads()  # where only adapters learn, nothing before them would ask for a gradient
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # transformers recomputes in training alone
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 (a module takes tensors alone, says its type)
