"""What training will need in memory, before it is tried: weights, gradients, optimizer, activations.

Counts follow from the model's config. Activations are those that `training.pretrain.llama` and transformers' classes keep for their
backward pass, or one layer's where they are recomputed (checked against what autograd really keeps, in
`tests/training/hardware/test_memory.py`). Allocators and kernels need some on top: `HEADROOM`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.stage.stage import Device
    from training.models.lora_settings import Lora
    from training.models.precision_settings import Precision

Method = Literal["full", "lora", "qlora"]
HEADROOM = 0.9  # the share of a device's memory that can be planned with
TOKENS = 16_384  # of a pass, padding included, at most
ACTIVATIONS, ACTIVATIONS_GPU = (
    2**30,
    2**32,
)  # bytes that a pass keeps for the way back, where nobody says how many rows it has
# Elements of a slice of logits (`training.models.output_head`): 16 MiB in float32, so that the table of weights is read once for some
# eighty tokens; a GPU needs large products instead.
LOGITS_AT_ONCE, LOGITS_AT_ONCE_GPU = 1 << 22, 1 << 26
LIBRARIES = 0.75 * 2**30  # what torch, transformers and TRL are in a process without a GPU
SAMPLER = 1.2 * 2**30  # vLLM in this process, without weights and cache
CACHE = 2**30  # of keys and values in it
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
    """Bytes.

    Attributes:
        beside: other models and engines.
        accumulates: whether a step has several passes. In the only pass of one, activations go as gradients come.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    libraries: float = 0.0
    beside: float = 0.0
    accumulates: bool = True

    @property
    def total(self) -> float:
        learning = (self.gradients, self.activations)
        lasting = self.weights + self.optimizer + self.libraries + self.beside
        return lasting + (sum(learning) if self.accumulates else max(learning))


@dataclass(frozen=True)
class Fit:
    """A way of fine-tuning that fits: `batch` sequences at once, `accumulate` times for one step."""

    method: Method
    batch: int
    accumulate: int
    memory: Memory
    recompute: bool = False  # has to be set


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
    """Bytes a token that one layer of `training.pretrain.llama` keeps: two residuals in float32; in the products' type two norms
    before and after their weights, queries, keys and values, queries and keys rotated, the attention's output, and the MLP's gate,
    up, silu(gate) and their product."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, groups = config.num_attention_heads * head, config.num_key_value_heads * head
    return 2 * width * 4 + product_bytes * (4 * width + 3 * queries + 3 * groups + 4 * inner)


def pretraining(
    config: Shape, blocks: int, block: int, product_bytes: int = 2, processes: int = 1, recompute: bool = False
) -> Memory:
    """`pretrain` with AdamW, `blocks` at once in each process; with FSDP2 all but activations is split over them."""
    count = parameters(config) / processes
    head = block * blocks * config.hidden_size * (4 + product_bytes) + 4 * config.vocab_size * config.hidden_size
    layer, layers = layer_activations(config, product_bytes), config.num_hidden_layers
    layer = layer + 4 * config.hidden_size * layers if recompute else layer * layers
    copies = product_bytes * matrix_weights(config)  # weights in the products' type, side by side
    kept = blocks * block * layer + head + copies
    return Memory(4 * count, 4 * count, 8 * count, kept)


def stock_activations(config: Shape, product_bytes: int, r: int | None, length: int, cast: bool = True) -> float:
    """Bytes a token that one layer of transformers' classes keeps for its backward pass.

    In float32 what norms are given and, where their weights learn, what they are multiplied by. In the products' type what
    each norm hands on (a copy for each product where it has to be cast), queries, keys and values (those of groups repeated,
    as a mask wants them), the attention's output, gate, up, silu(gate) and their product, the row of the mask, and what goes
    through an adapter.

    Args:
        r: rank of the adapters; None where all weights learn.
        length: tokens that a mask pads rows to; 0 where there is no mask.
        cast: whether hidden states are wider than products, as those of float32 weights are.
    """
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    queries, groups = heads * config.head_dim, config.num_key_value_heads * config.head_dim
    norms = 4 * width * (4 if r is None else 2)
    handed_on = 5 if product_bytes == 2 and cast else 2
    attended = 4 * queries + length if length else 2 * queries + 2 * groups
    elements = handed_on * width + attended + 4 * inner + (7 * r if r else 0)
    return norms + product_bytes * elements + 4 * heads


def pass_tokens(config: Shape | None, product_bytes: int, r: int | None, length: int, gpu: bool) -> int:
    """Tokens of a pass that learns, padding included: as many as keep `ACTIVATIONS` (on a GPU, where they are recomputed unless
    a recipe says otherwise, one layer's), `TOKENS` at most. Counted as if hidden states were cast; neither that nor whether they are
    recomputed changes it: it changes no byte."""
    if config is None:
        return 2_048
    layer = stock_activations(config, product_bytes, r, length)
    width = config.hidden_size
    each = layer + 4 * width * config.num_hidden_layers if gpu else layer * config.num_hidden_layers
    return int(min(TOKENS, max(1, (ACTIVATIONS_GPU if gpu else ACTIVATIONS) // each)))


@dataclass(frozen=True)
class FineTuning:
    """What is trained with AdamW on float32 weights (or adapters), by transformers' classes, and how.

    Attributes:
        length: tokens of a sequence.
        r: of an adapter.
        half: products are bfloat16.
        own: bytes of a weight as the model stands on disk; frozen weights are held so where products are bfloat16.
        recompute: activations of a layer in the backward pass; on a GPU if None.
        references: whole models beside it that only look, as wide as the frozen weights; where all weights learn, float32.
        beside: bytes of whatever else is held: reward models, a sampler.
        processes: over which FSDP2 splits the model itself, whatever trains it.
        scores_ids: whether there is an output layer over the vocabulary, whose logits come in slices.
        masked: whether attention is given a mask (TRL's trainers do; rows padded on the right need none).
    """

    shape: Shape
    length: int
    method: Method = "full"
    r: int = 16
    gpu: bool = True
    references: float = 0
    processes: int = 1
    half: bool = True
    own: float = 4.0
    recompute: bool | None = None
    beside: float = 0.0
    scores_ids: bool = True
    masked: bool = True

    @property
    def recomputes(self) -> bool:
        return self.gpu if self.recompute is None else self.recompute

    def memory(self, sequences: int, accumulates: bool = False) -> Memory:
        """With so many sequences at once, in one of several passes of a step or in the only one."""
        shape, half = self.shape, self.half
        count, matrices, layers = parameters(shape), matrix_weights(shape), shape.num_hidden_layers
        product = 2 if half else 4
        trained = (count if self.method == "full" else adapter_weights(shape, self.r)) / self.processes
        width_of_frozen = self.own if half and self.method != "full" else 4.0
        frozen = {
            "full": 0.0, "lora": width_of_frozen * count / self.processes,
            "qlora": QUANTIZED * matrices + 2.0 * (count - matrices),
        }[self.method]  # fmt: skip
        frozen += width_of_frozen * count * self.references
        rank, padded = None if self.method == "full" else self.r, self.length if self.masked else 0
        layer = stock_activations(shape, product, rank, padded, cast=width_of_frozen == 4)
        each = 4 * shape.hidden_size * layers + layer if self.recomputes else layers * layer
        kept = sequences * self.length * each
        if half and width_of_frozen == 4 and self.method != "qlora":  # weights in the products' type, beside their own
            kept += product * matrices / (layers if self.recomputes else 1)
        if self.scores_ids:
            # A slice of logits, the weights that they become, and their gradient; and the head's.
            kept += 12 * (LOGITS_AT_ONCE_GPU if self.gpu else LOGITS_AT_ONCE)
            kept += 4 * shape.vocab_size * shape.hidden_size if self.method == "full" else 0
        libraries = 0.0 if self.gpu else LIBRARIES
        return Memory(frozen + 4 * trained, 4 * trained, 8 * trained, kept, libraries, self.beside, accumulates)

    def pass_rows(
        self, batch: int, rows: int = 1, micro_batch: int | None = None, equal: bool = False, unlearnt: int = 0
    ) -> int:
        """Sequences of the largest pass over `batch` examples of so many rows, in `equal` passes or not.

        Args:
            unlearnt: rows that an example has beside those, of which nothing is kept.
        """
        if micro_batch:
            return min(micro_batch, batch) * rows
        r = None if self.method == "full" else self.r
        padded = self.length if self.masked else 0
        tokens = pass_tokens(self.shape, 2 if self.half else 4, r, padded, self.gpu)
        most = min(batch, max(1, tokens // ((rows + unlearnt) * self.length)))
        return rows * (max(n for n in range(1, most + 1) if batch % n == 0) if equal else most)

    def ways(self, device: float, batch: int, rows: int = 1) -> list[Fit]:
        """What fits into `device` bytes for steps of `batch` examples of so many rows: for each method the most at once,
        full first. An adapter needs no reference beside it: that is the model without it."""
        found: list[Fit] = []
        for method in ("full", "lora", "qlora")[: 3 if self.gpu else 2]:
            way = replace(self, method=method, references=self.references if method == "full" else 0)
            for at_once in sorted((n for n in range(1, batch + 1) if batch % n == 0), reverse=True):
                for recompute in dict.fromkeys((self.recomputes, True)):
                    need = replace(way, recompute=recompute).memory(at_once * rows, at_once < batch)
                    if need.total <= HEADROOM * device:
                        found.append(Fit(method, at_once, batch // at_once, need, recompute and not self.recomputes))
                        break
                else:
                    continue
                break
        return found


# -- in words, for `flywheel plan` ---------------------------------------------------------------------------------------


def gibibytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{max(1, round(count / 2**20)):,} MiB"


def multiplies_half(dtype: Precision, device: Device) -> bool:
    """Whether products are bfloat16 there: on a GPU unless float32 is asked for, on this machine's processor if it has units for it."""
    return dtype == "bfloat16" or (dtype == "auto" and (device.gpu or _processor_has_units()))


@cache
def _processor_has_units() -> bool:
    """As torch would say (`training.hardware.bfloat16`), without torch."""
    facts = Path("/proc/cpuinfo")
    return facts.exists() and bool({"avx512_bf16", "amx_bf16"} & set(facts.read_text().split()))


def own_bytes(config: dict[str, Any]) -> float:
    """Of a weight, as the model's config says it stands on disk."""
    stated = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return 2.0 if stated.endswith("16") else 4.0


def fine_tuning(
    config: dict[str, Any], device: Device, lora: Lora | None, length: int, dtype: Precision, recompute: bool | None,
    **more: Any,
) -> FineTuning | None:  # fmt: skip
    """What a stage configured so would train; None of a model whose layers are not counted here."""
    shape = shape_of(config)
    if shape is None:
        return None
    method: Method = "full" if lora is None else "qlora" if lora.quantize else "lora"
    return FineTuning(
        shape, min(length, config.get("max_position_embeddings") or length), method, lora.r if lora else 16, device.gpu,
        half=multiplies_half(dtype, device), own=own_bytes(config), recompute=recompute, **more,
    )  # fmt: skip


def forecast_fine_tuning(
    known: dict[str, Any],
    device: Device,
    lora: Lora | None,
    length: int,
    batch: int,
    micro_batch: int | None = None,
    dtype: Precision = "auto",
    recompute: bool | None = None,
    *,
    rows: int = 1,
    references: float = 0,
    reward_models: int = 0,
    sampler: bool = False,
    processes: int = 1,
    shared_by: int = 1,
    methods: Sequence[Method] = ("full", "lora", "qlora"),
    scores_ids: bool = True,
    masked: bool = True,
    equal: bool = False,
    unlearnt: int = 0,
) -> dict[str, Any]:
    """A stage's forecast: the model's config, what training it as configured needs, and where that does not fit, what does.

    Args:
        known: what is known about the model.
        rows: sequences that one example is (a pair is two).
        references: frozen models of the same size beside it.
        reward_models: those beside it, in float32.
        sampler: whether vLLM answers in the same memory; on a GPU it has a share of its own.
        processes: those that split the weights (FSDP2).
        shared_by: processes that share each step. Each has a GPU of its own; without GPUs they share the machine's memory.
        methods: those that the stage has.
        scores_ids, masked: as of `FineTuning`.
        equal: whether all passes of a step have as many rows.
        unlearnt: as of `FineTuning.pass_rows`.
    """  # fmt: skip
    config = known.get("config")
    shape = shape_of(config) if config else None
    if config is None or shape is None:
        return {}
    count = parameters(shape)
    beside = 4.0 * count * reward_models + (4.0 * count + CACHE + SAMPLER if sampler and not device.gpu else 0.0)
    training = fine_tuning(
        config, device, lora, length, dtype, recompute, references=references, processes=processes, beside=beside,
        scores_ids=scores_ids, masked=masked,
    )  # fmt: skip
    assert training is not None
    sequences = training.pass_rows(batch, rows, micro_batch, equal, unlearnt)
    need = training.memory(sequences, sequences < batch * rows)
    together = 1 if device.gpu else shared_by  # processes in the memory that is planned with
    whole = together * (need.total - need.beside) + need.beside
    told = (
        f"{count:,} weights, {training.method} at {sequences} x {training.length} tokens"
        + (f", in each of {shared_by} processes" if shared_by > 1 else "")
        + f": {gibibytes(need.total)} "
        f"(weights {gibibytes(need.weights)}, gradients {gibibytes(need.gradients)}, optimizer "
        f"{gibibytes(need.optimizer)}, activations {gibibytes(need.activations)}"
        + (f", sampler and reward {gibibytes(need.beside)}" if need.beside else "")
        + (f", libraries {gibibytes(need.libraries)}" if need.libraries else "")
        + (f"; all together {gibibytes(whole)}" if whole > need.total else "")
        + f") of {gibibytes(device.memory)}"
    )
    if whole > HEADROOM * device.memory:
        r = training.r
        settings = {"full": [], "lora": [f"lora: {{r: {r}}}"], "qlora": [f"lora: {{r: {r}, quantize: true}}"]}
        ways = [
            f"`{', '.join([*settings[fit.method], f'micro_batch: {fit.batch}', *(['recompute: true'] if fit.recompute else [])])}` "
            f"(x {fit.accumulate}: {gibibytes(fit.memory.total)})"
            for fit in training.ways(device.memory / together, batch, rows)
            if fit.method in methods and not (fit.method == "qlora" and processes > 1)
        ]
        told += ": DOES NOT FIT. " + (f"What does: {'; '.join(ways)}" if ways else "Nor does an adapter with one row")
    return {"config": config, "needs": told, "memory": int(whole), "parts": need}


def forecast_pretraining(
    config: Shape, device: Device, batch: int, micro_batch: int, block: int, processes: int, dtype: Precision = "auto",
    recompute: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What the configured way needs of a device, and where it does not fit, what does; `processes` are those that split the weights (FSDP2)."""
    product = 2 if multiplies_half(dtype, device) else 4
    libraries = 0.0 if device.gpu else LIBRARIES
    need = pretraining(config, micro_batch, block, product, processes, recompute).total + libraries
    told = (
        f"{parameters(config):,} weights at {micro_batch} x {block} tokens: "
        f"{gibibytes(need)} of {gibibytes(device.memory)}"
    )
    if need > HEADROOM * device.memory:
        told += ": DOES NOT FIT. "
        for at_once in sorted((n for n in range(1, micro_batch) if batch % n == 0), reverse=True):
            less = pretraining(config, at_once, block, product, processes, recompute).total + libraries
            if less <= HEADROOM * device.memory:
                told += f"What does: `micro_batch: {at_once}` (x {batch // at_once}: {gibibytes(less)})"
                break
        else:
            told += "Nor does one block at once. More GPUs with `sharding: shard`, or a smaller `size`"
    return {"needs": told, "memory": int(need)}
