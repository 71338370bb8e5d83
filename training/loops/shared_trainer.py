"""TRL's trainers, as several processes share them.

Each process has a Trainer that believes itself alone and reads the batch of the whole step, the same in all. It learns from its
part of the step's passes; then gradients, losses and curves are put together, and all take the same optimizer step. So which rows
are in a step, its loss and its checkpoint do not depend on how many share it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME

from engine.seeds import derive
from training.loops.distributed import (
    dealt,
    everywhere,
    gathered,
    is_split,
    rank,
    split_like,
    spread,
    sum_gradients,
    whole,
    world,
)
from training.loops.processes_settings import Strategy

Inputs = dict[str, Any]  # what a collator gives: tensors of as many rows


@dataclass(frozen=True)
class Pass:
    """What a pass found: its part of the loss, and what it told for the curves."""

    number: int
    loss: float
    told: dict[str, list[float]]


def shared(trainer: type[Any], sharding: Strategy) -> type[Any]:
    """A trainer whose steps are made of passes that are dealt out to the processes.

    With `sharding: shard` the model is split (FSDP2) once it is loaded and before there is an optimizer; a checkpoint is
    gathered, and holds what one of a single process does.
    """

    class Shared(trainer):
        share = 1.0  # what the pass under way counts

        def take_passes(
            self, model: Any, passes: Sequence[tuple[Inputs, float]], num_items_in_batch: Any
        ) -> list[tuple[float, dict[str, list[float]]]]:
            """Learn from this process's part of a step's passes, each given with what it counts. What those of all found, in order:
            the loss, and values for the curves."""
            curves = self._curves()
            before = getattr(self, "_total_train_tokens", 0)
            found: list[Pass] = []
            for number, counts in dealt(len(passes)):
                inputs, share = passes[number]
                known = {name: len(values) for name, values in curves.items()}
                tokens = getattr(self, "_total_train_tokens", 0)
                self.share = share * counts
                with self._own_randomness(number):
                    loss = super().training_step(model, inputs, num_items_in_batch)
                self.share = 1.0
                told: dict[str, list[float]] = {}
                for name, values in curves.items():
                    if name != "num_tokens":
                        told[name] = values[known.get(name, 0) :]
                        del values[known.get(name, 0) :]
                if counts:
                    found.append(Pass(number, float(loss), told))
                elif hasattr(self, "_total_train_tokens"):
                    self._total_train_tokens = tokens
            if world() > 1:
                sum_gradients(model)
                self._count_tokens(before)
            every = sorted((one for part in everywhere(found) for one in part), key=lambda one: one.number)
            return [(one.loss, one.told) for one in every]

        def _curves(self) -> dict[str, list[float]]:
            """Where TRL collects what it logs."""
            kept = getattr(self, "_metrics", None) or getattr(self, "_stored_metrics", None)
            return kept["train"] if kept is not None else {}

        def _count_tokens(self, before: int) -> None:
            """TRL's count of the tokens learnt from, of all processes."""
            if hasattr(self, "_total_train_tokens"):
                learnt = sum(everywhere(self._total_train_tokens - before))
                if learnt:  # GRPO counts elsewhere
                    self._total_train_tokens = before + learnt
                    self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

        @contextmanager
        def _own_randomness(self, number: int) -> Generator[None]:
            """Within this, what is drawn (dropout) depends on step and pass alone, not on who makes it or what was drawn before;
            and what is drawn later (the order of rows) not on it."""
            if world() == 1:
                yield
                return
            devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(derive(self.args.seed, "pass", self.state.global_step, number) % 2**63)
                yield

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return (loss[0] * self.share, *loss[1:]) if isinstance(loss, tuple) else loss * self.share

        # -- a split model ---------------------------------------------------------------------------------------------

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            for model in (self.model, getattr(self, "ref_model", None)):
                if model is not None:
                    spread(model, sharding)
            return super().create_optimizer(*args, **kwargs)

        def _clip_grad_norm(self, model: Any) -> Tensor:
            return whole(super()._clip_grad_norm(model))

        # -- checkpoints -----------------------------------------------------------------------------------------------

        _gathered: dict[str, Tensor] | None = None  # weights, while a checkpoint is written

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            """All processes must; rank 0 writes."""
            if not self._is_split():
                if rank() == 0:
                    super()._save_checkpoint(*args, **kwargs)
                return
            adapter = hasattr(self.model, "peft_config")
            learning = {name for name, p in self.model.named_parameters() if p.requires_grad}
            self._gathered = gathered(
                {name: value for name, value in self.model.state_dict().items() if not adapter or name in learning}
            )
            state = dict(self.optimizer.state_dict())
            state["state"] = {  # in the order of the parameters, in all processes; the optimizer's own entries stay
                number: {**entries, **gathered({name: v for name, v in entries.items() if isinstance(v, Tensor)})}
                for number, entries in state["state"].items()
            }
            if rank() == 0:
                optimizer, self.optimizer = self.optimizer, SimpleNamespace(state_dict=lambda: state)
                try:
                    super()._save_checkpoint(*args, **kwargs)
                finally:
                    self.optimizer = optimizer
            self._gathered = None

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, self._gathered if state_dict is None else state_dict)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is None or not self._is_split():
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            for index, entries in state["state"].items():
                like = parameters[index]
                entries.update({n: split_like(v, like) for n, v in entries.items() if isinstance(v, Tensor)})
            optimizer, load = self.optimizer, self.optimizer.load_state_dict
            self.optimizer = SimpleNamespace(load_state_dict=lambda _: load(state))
            try:
                super()._load_optimizer_and_scheduler(checkpoint)
            finally:
                self.optimizer = optimizer

        def _is_split(self) -> bool:
            return any(map(is_split, self.model.parameters()))

    return Shared
