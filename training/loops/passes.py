"""A step's batch, learnt from in passes of bounded size, rows of similar lengths together.

TRL's trainers are handed the batch of a whole step, so that what it is averaged over does not depend on how it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from training.hardware import memory
from training.loops.distributed import world
from training.loops.processes_settings import Strategy
from training.loops.shared_trainer import Inputs, shared
from training.models.lora_settings import Lora
from training.models.precision import products
from training.models.precision_settings import Precision


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


def groups(
    lengths: Sequence[int], tokens: int, most: int | None = None, rows: int = 1, processes: int = 1
) -> Iterator[list[int]]:
    """Indices of examples by length, in groups.

    Args:
        lengths: of the longest row of each example.
        tokens: of a group at most, padding included; an example that has more is alone. Has no effect with `most`.
        most: examples of a group at most.
        rows: of an example.
        processes: that share them: a group has no more than the part of one.
    """
    part = -(-len(lengths) // processes)
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        full = len(group) == most if most else (len(group) + 1) * rows * lengths[i] > tokens
        if group and (full or len(group) == part):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def in_passes(
    trainer: type[Any],
    tokens: int,
    most: int | None = None,
    pairs: bool = False,
    *,
    sharding: Strategy = "replicate",
    together: bool = False,
) -> type[Any]:
    """A trainer of TRL's whose training step is cut into passes; each counts as many times as it has rows. Several processes share
    them.

    Args:
        tokens, most: of a pass, as for `groups`; examples are pairs, where these are.
        pairs: whether the first half of the rows are what the second half is compared with, row by row.
        sharding: whether the processes split the model.
        together: whether what is learnt depends on which examples are in a pass, so that processes must not cut it further.
    """

    class InPasses(shared(trainer, sharding)):
        def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> Tensor:
            inputs = self._prepare_inputs(inputs)
            parts = list(cut(inputs, tokens, most, pairs, 1 if together else world()))
            self.before_passes(model, [part for part, _ in parts])
            # Losses that are sums over tokens are divided by those of the batch already.
            passes = [(part, 1.0 if num_items_in_batch is not None else share) for part, share in parts]
            found = self.take_passes(model, passes, num_items_in_batch)
            shares = [share for _, share in parts]
            known = self._curves()
            weighted = hasattr(self, "_metrics")
            for name in dict.fromkeys(name for _, told in found for name in told):
                values = [value for _, told in found for value in told.get(name, [])]
                if weighted and len(values) == len(shares) > 1:
                    values = [sum(s * v for s, v in zip(shares, values, strict=True))]
                known[name] += values
            return torch.tensor([loss for loss, _ in found], device=self.args.device).sum()

        def before_passes(self, model: Any, parts: list[Inputs]) -> None:
            """What has to be known of the batch before a part of it is learnt from."""

    return InPasses


def in_dealt_batches(trainer: type[Any], sharding: Strategy) -> type[Any]:
    """A trainer of TRL's whose step is made of several batches already (`gradient_accumulation_steps`), which several processes
    share."""

    class InDealtBatches(shared(trainer, sharding)):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._waiting: list[tuple[Inputs, float]] = []
            self._prepared = False  # what is learnt from now

        def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> Tensor:
            if world() == 1:
                return super().training_step(model, inputs, num_items_in_batch)
            model.train()  # as TRL looks whether to prepare for training
            self._waiting.append((self._prepare_inputs(inputs), 1.0))
            step = getattr(self, "_step", 0) + 1  # GRPO's count of batches
            self._step = step
            if not self.accelerator.sync_gradients:
                return torch.zeros((), device=self.args.device)
            self._prepared = True
            found = self.take_passes(model, self._waiting, num_items_in_batch)
            self._prepared, self._waiting, self._step = False, [], step
            known = self._curves()
            for _, told in found:
                for name, values in told.items():
                    known[name] += values
            return torch.tensor([loss for loss, _ in found], device=self.args.device).sum()

        def _prepare_inputs(self, inputs: Inputs) -> Inputs:
            return inputs if self._prepared else super()._prepare_inputs(inputs)

    return InDealtBatches


def cut(
    inputs: Inputs, tokens: int, most: int | None, pairs: bool, processes: int = 1
) -> Iterator[tuple[Inputs, float]]:
    """The parts of a batch, each with its share of the rows, without the columns that are padding in all of its rows."""
    masks = {name.removesuffix("attention_mask"): mask for name, mask in inputs.items() if "attention_mask" in name}
    lengths = torch.stack([mask.sum(1) for mask in masks.values()]).amax(0)
    if pairs:
        lengths = torch.maximum(*lengths.chunk(2))
    rows = 2 if pairs else len({name for name in masks if name != "prompt_"})
    for group in groups(lengths.tolist(), tokens, most, rows, processes):
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
