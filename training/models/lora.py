"""Low-rank adapters: LoRA (Hu et al. 2021, arXiv:2106.09685), and DoRA, rsLoRA and QLoRA as its options, through PEFT.

An adapter is a small artifact of its own: it names the artifact it was trained on, is served unmerged by vLLM, and
merges into a full model when that is wanted.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BitsAndBytesConfig

from engine.errors import UserError
from training.models.patches import leave_casts_to_autocast

if TYPE_CHECKING:
    from training.models.lora_settings import Lora


def peft_config(lora: Lora) -> LoraConfig:
    """The adapter of these settings, as PEFT wants it described."""
    leave_casts_to_autocast()
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=cast(int, lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )


def quantization() -> Any:
    """4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).

    Raises:
        UserError: there is no GPU, or bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise UserError("`quantize` (QLoRA) needs an NVIDIA GPU, and there is none. Leave it out to train LoRA.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("`quantize` (QLoRA) needs bitsandbytes: pip install bitsandbytes.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def merged(model: Any, location: str) -> Any:
    """The base model with an adapter's update added to its weights."""
    return cast(Any, PeftModel.from_pretrained(model, location)).merge_and_unload()


def merged_in(model: Any, dtype: torch.dtype) -> Any:
    """A PEFT model with its adapter merged, in this type: the sum is rounded once, not the update before it."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            base.to(torch.float32)
            layer.merge()
            base.to(dtype)
    return model.unload().to(dtype)
