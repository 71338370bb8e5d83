"""Products in bfloat16 around weights that stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from training.hardware.units import has_bfloat16_units

if TYPE_CHECKING:
    from training.models.precision_settings import Precision


def products(dtype: Precision) -> torch.dtype:
    """The type of matrix products that a recipe's word stands for on this machine."""
    half = dtype == "bfloat16" or (dtype == "auto" and has_bfloat16_units())
    return torch.bfloat16 if half else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Within this, products are of this type."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
