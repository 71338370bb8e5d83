"""A step's batch, learnt from in passes of bounded size, rows of similar lengths together.

TRL's trainers are handed the batch of a whole step, so that what it is averaged over does not depend on how it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from training.hardware import memory
from training.models.lora_settings import Lora
from training.models.precision import products
from training.models.precision_settings import Precision

Inputs = dict[str, Any]  # what a collator gives: tensors of as many rows


class Learning(Protocol):
    """What of a stage says how much a pass may hold."""

    dtype: Precision
    recompute: bool | None
    lora: Lora | None


def bound(stage: Learning, config: Any, length: int = 0) -> int:
    """Tokens of a pass through a model: what the plan counts with (`memory.pass_tokens`).

    Args:
        length: of the longest rows, where attention is given a mask.
    """
    shape = memory.shape_of(config.get_text_config().to_dict())
    width = 2 if products(stage.dtype) == torch.bfloat16 else 4
    return memory.pass_tokens(shape, width, stage.lora.r if stage.lora else None, length, torch.cuda.is_available())


def recomputes(stage: Learning) -> bool:
    """Whether activations are made again in the backward pass."""
    return torch.cuda.is_available() if stage.recompute is None else stage.recompute


def groups(lengths: Sequence[int], tokens: int, most: int | None = None, rows: int = 1) -> Iterator[list[int]]:
    """Indices of examples by length, in groups.

    Args:
        lengths: of the longest row of each example.
        tokens: of a group at most, padding included; an example that has more is alone. Has no effect with `most`.
        most: examples of a group at most.
        rows: of an example.
    """
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        full = len(group) == most if most else (len(group) + 1) * rows * lengths[i] > tokens
        if group and full:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def in_passes(trainer: type[Any], tokens: int, most: int | None = None, pairs: bool = False) -> type[Any]:
    """A trainer of TRL's whose training step is cut into passes; each counts as many times as it has rows.

    Args:
        tokens, most: of a pass, as for `groups`; examples are pairs, where these are.
        pairs: whether the first half of the rows are what the second half is compared with, row by row.
    """

    class InPasses(trainer):
        share = 1.0  # of the pass under way in the mean over the batch

        def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> Tensor:
            inputs = self._prepare_inputs(inputs)
            parts = list(cut(inputs, tokens, most, pairs))
            self.before_passes(model, [part for part, _ in parts])
            known: dict[str, list[float]] = self._metrics["train"] if hasattr(self, "_metrics") else {}
            before = {name: len(values) for name, values in known.items()}
            losses: list[Tensor] = []
            for part, share in parts:
                # Losses that are sums over tokens are divided by those of the batch already.
                self.share = 1.0 if num_items_in_batch is not None else share
                losses.append(super().training_step(model, part, num_items_in_batch))
            self.share = 1.0
            shares = [share for _, share in parts]
            for name, values in known.items():
                start = before.get(name, 0)
                if len(values) - start == len(shares) > 1:
                    values[start:] = [sum(s * v for s, v in zip(shares, values[start:], strict=True))]
            return torch.stack(losses).sum()

        def before_passes(self, model: Any, parts: list[Inputs]) -> None:
            """What has to be known of the batch before a part of it is learnt from."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return (loss[0] * self.share, *loss[1:]) if isinstance(loss, tuple) else loss * self.share

    return InPasses


def cut(inputs: Inputs, tokens: int, most: int | None, pairs: bool) -> Iterator[tuple[Inputs, float]]:
    """The parts of a batch, each with its share of the rows, without the columns that are padding in all of its rows."""
    masks = {name.removesuffix("attention_mask"): mask for name, mask in inputs.items() if "attention_mask" in name}
    lengths = torch.stack([mask.sum(1) for mask in masks.values()]).amax(0)
    if pairs:
        lengths = torch.maximum(*lengths.chunk(2))
    rows = 2 if pairs else len({name for name in masks if name != "prompt_"})
    for group in groups(lengths.tolist(), tokens, most, rows):
        chosen = torch.tensor(group + [len(lengths) + i for i in group] if pairs else group)
        part: Inputs = {}
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                part[name] = [value[i] for i in chosen.tolist()] if isinstance(value, list) else value
                continue
            own = value[chosen.to(value.device)] if value.dim() else value
            part[name] = own[:, _used(masks, name, chosen)] if own.dim() == 2 else own
        yield part, len(group) / len(lengths)


def _used(masks: dict[str, Tensor], name: str, rows: Tensor) -> slice:
    """The columns of a tensor between the first and the last that are real in one of the rows."""
    prefix = max((prefix for prefix in masks if name.startswith(prefix)), key=len)
    real = masks[prefix][rows.to(masks[prefix].device)].any(0).nonzero()
    return slice(int(real[0]), int(real[-1]) + 1)
