"""What training will need in memory, before it is tried: weights, gradients, optimizer, activations.

Counts follow from the model's config. Activations are those that `training.llama` keeps for its backward pass (checked
against what autograd really keeps, in `tests/training/test_memory.py`); fine-tuning through TRL recomputes them layer by
layer on a GPU. Allocators and kernels need some on top: `HEADROOM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Method = Literal["full", "lora", "qlora"]
HEADROOM = 0.9  # the share of a device's memory that can be planned with
QUANTIZED = 0.5 + 0.127 / 8  # bytes a weight: 4-bit NormalFloat and its doubly quantised scales (arXiv:2305.14314, 3)


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Fit:
    """A way of fine-tuning that fits: `batch` sequences at once, `accumulate` times for one step."""

    method: Method
    batch: int
    accumulate: int
    memory: Memory


def matrix_weights(config: PretrainedConfig) -> int:
    """Weights of the matrices inside the layers."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    return config.num_hidden_layers * (2 * width * queries + 2 * width * groups + 3 * width * inner)


def parameters(config: PretrainedConfig) -> int:
    """Weights of a Llama or Qwen3 decoder."""
    width, layers = config.hidden_size, config.num_hidden_layers
    norms = 2 * width * layers + width + (2 * config.head_dim * layers if config.model_type == "qwen3" else 0)
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return matrix_weights(config) + norms + tables


def adapter_weights(config: PretrainedConfig, r: int) -> int:
    """Weights of LoRA of rank r on all matrices inside the layers: r * (in + out) each."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    each = 2 * (width + queries) + 2 * (width + groups) + 3 * (width + inner)
    return config.num_hidden_layers * r * each


def layer_activations(config: PretrainedConfig, product_bytes: int) -> float:
    """Bytes a token that one layer keeps: two residuals in float32; in the products' type two norms before and after their
    weights, queries, keys and values, queries and keys rotated, the attention's output, and the MLP's gate, up,
    silu(gate) and their product."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    return 2 * width * 4 + product_bytes * (4 * width + 3 * queries + 3 * groups + 4 * inner)


def pretraining(
    config: PretrainedConfig, blocks: int, block: int, product_bytes: int = 2, processes: int = 1
) -> Memory:
    """`pretrain` with AdamW, `blocks` at once in each process; with FSDP2 all but activations is split over them."""
    count = parameters(config) / processes
    head = block * blocks * config.hidden_size * (4 + product_bytes) + 4 * config.vocab_size * config.hidden_size
    layers = config.num_hidden_layers * blocks * block * layer_activations(config, product_bytes)
    copies = product_bytes * matrix_weights(config)  # weights in the products' type, side by side
    kept = layers + head + copies
    return Memory(4 * count, 4 * count, 8 * count, kept)


def fine_tuning(config: PretrainedConfig, method: Method, batch: int, length: int, r: int = 16) -> Memory:
    """`sft` on a GPU: AdamW on float32 weights (or adapters), bfloat16 products, activations recomputed by layer."""
    count = parameters(config)
    matrices = matrix_weights(config)
    trained = count if method == "full" else adapter_weights(config, r)
    frozen = {"full": 0.0, "lora": 4.0 * count, "qlora": QUANTIZED * matrices + 2.0 * (count - matrices)}[method]
    tokens = batch * length
    kept = tokens * (2 * config.hidden_size * config.num_hidden_layers + layer_activations(config, 2))
    return Memory(frozen + 4 * trained, 4 * trained, 8 * trained, kept)


def propose(config: PretrainedConfig, device: float, batch: int, length: int, r: int = 16) -> list[Fit]:
    """What fits into `device` bytes for steps of `batch` sequences: for each method the most at once, full first."""
    found: list[Fit] = []
    for method in ("full", "lora", "qlora"):
        for at_once in sorted((n for n in range(1, batch + 1) if batch % n == 0), reverse=True):
            need = fine_tuning(config, method, at_once, length, r)
            if need.total <= HEADROOM * device:
                found.append(Fit(method, at_once, batch // at_once, need))
                break
    return found
