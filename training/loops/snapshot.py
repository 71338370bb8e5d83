"""What our own training loops (reward, PPO) put into a checkpoint: modules, the optimizer's moments, a few facts.

Orders and seeds are derived from the step, so there is nothing else the next step depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.loops.checkpoint import Checkpoint, Checkpoints, optimizer_tensors, restore_optimizers
from training.loops.distributed import gathered, split_like


def take(
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    facts: dict[str, Any] | None = None,
    score: float | None = None,
) -> Checkpoint:
    """The state after this many steps; frozen parameters are left out. All processes must ask, rank 0's is the one to
    keep."""
    parameters = _parameters(modules)
    tensors = gathered({**parameters, **optimizer_tensors(parameters.items(), [optimizer])})
    return Checkpoint(step, tensors, facts or {}, score)


def restore(checkpoints: Checkpoints, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> Checkpoint | None:
    """Put the newest whole checkpoint into these modules and this optimizer. None if there is none."""
    found = checkpoints.latest()
    if found:
        put(found, modules)
        restore_optimizers(found.tensors, _parameters(modules).items(), [optimizer])
    return found


def put(checkpoint: Checkpoint, modules: Mapping[str, nn.Module]) -> None:
    """Set the parameters alone."""
    with torch.no_grad():
        for name, parameter in _parameters(modules).items():
            parameter.copy_(split_like(checkpoint.tensors[name], parameter))


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{module_name}/{name}": parameter
        for module_name, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
