"""What training will need in memory, before it is tried: weights, gradients, optimizer, activations.

Counts follow from the model's config. Activations are those that `training.pretrain.llama` keeps for its backward pass (checked
against what autograd really keeps, in `tests/training/hardware/test_memory.py`); fine-tuning through TRL recomputes them layer by
layer on a GPU. Allocators and kernels need some on top: `HEADROOM`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.stage.stage import Device
    from training.models.lora_settings import Lora

Method = Literal["full", "lora", "qlora"]
HEADROOM = 0.9  # the share of a device's memory that can be planned with
QUANTIZED = 0.5 + 0.127 / 8  # bytes a weight: 4-bit NormalFloat and its doubly quantised scales (arXiv:2305.14314, 3)


class Shape(Protocol):
    """What of a transformers config counts. (`shape_of` reads one without importing transformers.)"""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool


def shape_of(settings: dict[str, Any]) -> Shape | None:
    """A decoder's shape from its config.json. None for another kind of model, whose layers are not counted here."""
    if settings.get("model_type") not in ("llama", "qwen3", "mistral"):
        return None
    heads = settings["num_attention_heads"]
    filled = {
        "num_key_value_heads": heads,
        "head_dim": settings["hidden_size"] // heads,
        "tie_word_embeddings": False,
        **{name: value for name, value in settings.items() if value is not None},
    }
    return cast(Shape, SimpleNamespace(**filled))


def read_shape(folder: Path) -> Shape | None:
    """The shape of the model in this folder, if it is one that is counted here."""
    file = folder / "config.json"
    return shape_of(json.loads(file.read_text())) if file.exists() else None


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


def matrix_weights(config: Shape) -> int:
    """Weights of the matrices inside the layers."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    return config.num_hidden_layers * (2 * width * queries + 2 * width * groups + 3 * width * inner)


def parameters(config: Shape) -> int:
    """Weights of a Llama or Qwen3 decoder."""
    width, layers = config.hidden_size, config.num_hidden_layers
    norms = 2 * width * layers + width + (2 * config.head_dim * layers if config.model_type == "qwen3" else 0)
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return matrix_weights(config) + norms + tables


def adapter_weights(config: Shape, r: int) -> int:
    """Weights of LoRA of rank r on all matrices inside the layers: r * (in + out) each."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    each = 2 * (width + queries) + 2 * (width + groups) + 3 * (width + inner)
    return config.num_hidden_layers * r * each


def layer_activations(config: Shape, product_bytes: int) -> float:
    """Bytes a token that one layer keeps: two residuals in float32; in the products' type two norms before and after their
    weights, queries, keys and values, queries and keys rotated, the attention's output, and the MLP's gate, up,
    silu(gate) and their product."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    return 2 * width * 4 + product_bytes * (4 * width + 3 * queries + 3 * groups + 4 * inner)


def pretraining(config: Shape, blocks: int, block: int, product_bytes: int = 2, processes: int = 1) -> Memory:
    """`pretrain` with AdamW, `blocks` at once in each process; with FSDP2 all but activations is split over them."""
    count = parameters(config) / processes
    head = block * blocks * config.hidden_size * (4 + product_bytes) + 4 * config.vocab_size * config.hidden_size
    layers = config.num_hidden_layers * blocks * block * layer_activations(config, product_bytes)
    copies = product_bytes * matrix_weights(config)  # weights in the products' type, side by side
    kept = layers + head + copies
    return Memory(4 * count, 4 * count, 8 * count, kept)


@dataclass(frozen=True)
class FineTuning:
    """What is trained with AdamW on float32 weights (or adapters), and how. On a GPU products are in bfloat16 and
    activations are recomputed by layer; without one they are float32 and all kept."""

    shape: Shape
    length: int  # tokens of a sequence
    method: Method = "full"
    r: int = 16  # of an adapter
    gpu: bool = True
    references: float = 0  # whole models beside it that only look
    processes: int = 1  # over which FSDP2 splits the model itself, whatever trains it

    def memory(self, sequences: int) -> Memory:
        """With so many sequences at once."""
        count, matrices, layers = parameters(self.shape), matrix_weights(self.shape), self.shape.num_hidden_layers
        trained = count / self.processes if self.method == "full" else adapter_weights(self.shape, self.r)
        frozen = {"full": 0.0, "lora": 4.0 * count, "qlora": QUANTIZED * matrices + 2.0 * (count - matrices)}[
            self.method
        ]
        frozen += 4.0 * count * self.references
        kept = sequences * self.length * (
            2 * self.shape.hidden_size * layers + layer_activations(self.shape, 2)
            if self.gpu
            else layers * layer_activations(self.shape, 4)
        )  # fmt: skip
        return Memory(frozen + 4 * trained, 4 * trained, 8 * trained, kept)

    def ways(self, device: float, batch: int, rows: int = 1) -> list[Fit]:
        """What fits into `device` bytes for steps of `batch` examples of so many rows: for each method the most at once,
        full first. An adapter needs no reference beside it: that is the model without it."""
        found: list[Fit] = []
        for method in ("full", "lora", "qlora")[: 3 if self.gpu else 2]:
            way = replace(self, method=method, references=self.references if method == "full" else 0)
            for at_once in sorted((n for n in range(1, batch + 1) if batch % n == 0), reverse=True):
                need = way.memory(at_once * rows)
                if need.total <= HEADROOM * device:
                    found.append(Fit(method, at_once, batch // at_once, need))
                    break
        return found


# -- in words, for `flywheel plan` ---------------------------------------------------------------------------------------


def gibibytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{max(1, round(count / 2**20)):,} MiB"


def forecast_fine_tuning(
    known: dict[str, Any],
    device: Device,
    lora: Lora | None,
    length: int,
    batch: int,
    micro_batch: int | None = None,
    *,
    rows: int = 1,
    references: float = 0,
    processes: int = 1,
    methods: Sequence[Method] = ("full", "lora", "qlora"),
) -> dict[str, Any]:
    """A stage's forecast: the model's config, what training it as configured needs, and where that does not fit, what does.

    Args:
        known: what is known about the model.
        micro_batch: of a stage that can make it smaller.
        rows: sequences that one example is (a pair is two).
        references: frozen models of the same size beside it.
        processes: those that split the weights (FSDP2).
        methods: those that the stage has.
    """  # fmt: skip
    config = known.get("config")
    shape = shape_of(config) if config else None
    if config is None or shape is None:
        return {}
    method: Method = "full" if lora is None else "qlora" if lora.quantize else "lora"
    r, length = lora.r if lora else 16, min(length, config.get("max_position_embeddings") or length)
    training = FineTuning(shape, length, method, r, device.gpu, references, processes)
    sequences = (micro_batch or batch) * rows
    need = training.memory(sequences)
    told = (
        f"{parameters(shape):,} weights, {method} at {sequences} x {length} tokens: {gibibytes(need.total)} "
        f"(weights {gibibytes(need.weights)}, gradients {gibibytes(need.gradients)}, optimizer "
        f"{gibibytes(need.optimizer)}, activations {gibibytes(need.activations)}) of {gibibytes(device.memory)}"
    )
    if need.total > HEADROOM * device.memory:
        settings = {"full": [], "lora": [f"lora: {{r: {r}}}"], "qlora": [f"lora: {{r: {r}, quantize: true}}"]}
        ways = [
            f"`{', '.join([*settings[fit.method], *([f'micro_batch: {fit.batch}'] if micro_batch else [])])}` "
            f"({f'x {fit.accumulate}: ' if micro_batch else ''}{gibibytes(fit.memory.total)})"
            for fit in training.ways(device.memory, batch, rows)
            if fit.method in methods and (micro_batch or fit.batch == batch)
        ]
        told += ": DOES NOT FIT. " + (f"What does: {'; '.join(ways)}" if ways else "Nor does an adapter with one row")
    return {"config": config, "needs": told, "memory": int(need.total)}


def forecast_pretraining(
    config: Shape, device: Device, batch: int, micro_batch: int, block: int, processes: int
) -> dict[str, Any]:
    """What the configured way needs of a device, and where it does not fit, what does; `processes` are those that split the weights (FSDP2)."""
    product = 2 if device.gpu else 4
    need = pretraining(config, micro_batch, block, product, processes).total
    told = (
        f"{parameters(config):,} weights at {micro_batch} x {block} tokens: "
        f"{gibibytes(need)} of {gibibytes(device.memory)}"
    )
    if need > HEADROOM * device.memory:
        told += ": DOES NOT FIT. "
        for at_once in sorted((n for n in range(1, micro_batch) if batch % n == 0), reverse=True):
            less = pretraining(config, at_once, block, product, processes).total
            if less <= HEADROOM * device.memory:
                told += f"What does: `micro_batch: {at_once}` (x {batch // at_once}: {gibibytes(less)})"
                break
        else:
            told += "Nor does one block at once. More GPUs with `sharding: shard`, or a smaller `size`"
    return {"needs": told, "memory": int(need)}
