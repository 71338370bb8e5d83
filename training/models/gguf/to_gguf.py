"""A model in the Hugging Face layout as a GGUF file, which llama.cpp and Ollama run.

Written is what `convert_hf_to_gguf.py` of llama.cpp writes for the same model: its names of tensors and keys, norms in float32,
and, for Llama, the rows of queries and keys in the order of the paper's rotation (pairs side by side) instead of
transformers' halves. One tensor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig

from engine.errors import UserError
from engine.store.whole_file import whole_file
from training.models.gguf import rotary, vocabulary
from training.models.load import quiet

Dtype = Literal["auto", "f32", "f16", "bf16"]
STORED = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
OWN = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Layout:
    """How an architecture is laid out in GGUF: under which name, and whether the rows of queries and keys are interleaved."""

    name: gguf.MODEL_ARCH
    interleaved: bool = False


LAYOUTS = {
    "llama": Layout(gguf.MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Layout(gguf.MODEL_ARCH.LLAMA, interleaved=True),
    "qwen2": Layout(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Layout(gguf.MODEL_ARCH.QWEN3),
}


def write(folder: Path, file: Path, name: str, dtype: Dtype = "auto") -> dict[str, Any]:
    """Write the model in this folder into a GGUF file, whole or not at all.

    The entry `gguf` of `flywheel.exporters`.

    Args:
        name: what the file calls the model.
        dtype: of the weights; "auto" is the one they have.

    Returns:
        facts: `architecture`, `dtype`, `tensors`.

    Raises:
        UserError: the architecture, its attention, or its tokenizer has no place in GGUF.
    """
    quiet()
    if dtype not in ("auto", *STORED):
        raise UserError(f"weights can't be stored as `{dtype}`. Expected auto, {', '.join(STORED)}.")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            "an adapter alone can't be written as GGUF. Train with `lora: {merge: true}`, and export that model."
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    layout = _layout(config)
    kind = OWN.get(str(config.dtype).removeprefix("torch."), "f32") if dtype == "auto" else dtype
    with whole_file(file) as partial:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[layout.name])
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(STORED[kind][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        vocabulary.add(writer, folder, config.vocab_size)
        tensors = [*_rope_divisors(config), *_named(folder, config, layout)]
        for tensor in tensors:
            form = _form(tensor, kind)
            shape, of = tensor.shape, np.dtype(np.float16 if kind == "f16" else np.float32)
            size = int(np.prod(shape)) * {"F32": 4, "F16": 2, "BF16": 2}[form.name]
            writer.add_tensor_info(tensor.name, shape, of, size, raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(gguf.quants.quantize(tensor.values(), _form(tensor, kind)))
        writer.close()
    return {"architecture": gguf.MODEL_ARCH_NAMES[layout.name], "dtype": kind, "tensors": len(tensors)}


def _layout(config: Any) -> Layout:
    """The layout of a model that can be written.

    Raises:
        UserError: it can't.
    """
    layout = LAYOUTS.get(config.model_type)
    window = getattr(config, "sliding_window", None)
    slides = window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings
    biased = config.model_type != "qwen2" and (
        getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    )
    purpose = (config.architectures or ["ForCausalLM"])[0]
    fault = (
        f"its architecture is `{config.model_type}`" if layout is None
        else f"it is a `{purpose}`" if not purpose.endswith("ForCausalLM")
        else f"it sees {window} tokens at a time (`sliding_window`)" if slides
        else "its layers have biases" if biased
        else f"its activation is `{config.hidden_act}`" if config.hidden_act != "silu"
        else "its weights are quantised" if getattr(config, "quantization_config", None)
        else ""
    )  # fmt: skip
    if layout is None or fault:
        raise UserError(
            f"this model can't be written as GGUF: {fault}. Expected one of {', '.join(LAYOUTS)} with full attention. Export "
            "it without `--format gguf`: vLLM and transformers load the folder, and llama.cpp's own converter may take it."
        )
    return layout


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    width = _head_width(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    known = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    match rope.get("rope_type", "default"):
        case "default" | "llama3":
            pass
        case "linear" | "yarn" as kind if set(rope) <= known:
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(rope["factor"])
            if kind == "yarn":
                old = rope.get("original_max_position_embeddings") or config.max_position_embeddings
                writer.add_rope_scaling_orig_ctx_len(old)
        case kind:
            raise UserError(
                f"this model can't be written as GGUF: its rotary embeddings are stretched by `{kind}` with {rope}. Expected "
                "one of default, linear, yarn, llama3."
            )


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; its values are read when they are written."""

    name: str
    shape: tuple[int, ...]
    file: Path | None
    key: str
    heads: int = 0  # of queries or keys whose rows are interleaved
    made: np.ndarray | None = None

    def values(self) -> np.ndarray:
        """In float32."""
        if self.made is not None or self.file is None:
            return np.asarray(self.made, np.float32)
        with safe_open(self.file, "pt") as opened:
            values: np.ndarray = opened.get_tensor(self.key).to(torch.float32).numpy()
        if self.heads:
            values = values.reshape(self.heads, 2, -1, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)
        return np.ascontiguousarray(values)


def _form(tensor: Tensor, kind: str) -> gguf.GGMLQuantizationType:
    """What llama.cpp expects: vectors in float32, matrices as asked."""
    return gguf.GGMLQuantizationType.F32 if len(tensor.shape) < 2 else STORED[kind][0]


def _named(folder: Path, config: Any, layout: Layout) -> Iterator[Tensor]:
    names = gguf.get_tensor_name_map(layout.name, config.num_hidden_layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for key in sorted(opened.keys()):
                if key == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                stem, _, suffix = key.rpartition(".")
                name = names.get_name(stem)
                if name is None:
                    raise UserError(f"{file} holds `{key}`, which has no name in GGUF's `{config.model_type}`.")
                heads = 0
                if layout.interleaved and stem.endswith(("q_proj", "k_proj")):
                    heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
                yield Tensor(f"{name}.{suffix}", tuple(opened.get_slice(key).get_shape()), file, key, heads)


def _rope_divisors(config: Any) -> Iterator[Tensor]:
    if config.rope_parameters.get("rope_type") == "llama3":
        made = rotary.divisors(config.rope_parameters, _head_width(config))
        yield Tensor(rotary.DIVISORS, made.shape, None, "", made=made)
