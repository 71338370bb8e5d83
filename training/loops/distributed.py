"""Several processes training one model (`training.loops.process_group` brings them together): each takes its share of every batch.

Which blocks are in a step does not depend on how many share it, and losses are divided by the targets of the whole batch, so
gradients are summed: the result is that of one process up to the order of additions.

- `replicate`: every process holds the whole model; gradients are summed (any optimizer).
- `shard`: FSDP2 (Zhao et al. 2023, arXiv:2304.11277): weights, gradients and optimizer state are split over the processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from training.hardware.memory import TOKENS
from training.loops.processes_settings import Strategy
from training.models.answers import EncodedAnswer
from training.models.padding import chunks

T = TypeVar("T")
_patient: Any = None  # a group; for what one process does while the others wait, however long that takes


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(indices: list[int]) -> list[int]:
    """This process's part of a batch."""
    size = len(indices) // world()
    return indices[rank() * size : (rank() + 1) * size]


def turns(
    answers: Sequence[EncodedAnswer], tokens: int = TOKENS, most: int | None = None
) -> list[tuple[list[int], float]]:
    """This process's share of these answers, in batches (as `chunks` cuts them), each with what it counts.

    Every pass through a split model is a joint one, so all processes have as many batches: one that has no answers left
    goes on with one that counts 0.
    """
    order = sorted(range(len(answers)), key=lambda i: (len(answers[i]), i))
    shares = [order[number :: world()] for number in range(world())]  # as many long ones for each
    batches = [
        [[own[i] for i in chunk] for chunk in chunks([answers[i] for i in own], tokens, most=most)] for own in shares
    ]
    ours, most = batches[rank()], max(map(len, batches))
    return [(chunk, 1.0) for chunk in ours] + [([order[0]], 0.0)] * (most - len(ours))


def dealt(count: int) -> list[tuple[int, float]]:
    """The numbers of this process's passes, of so many, each with what it counts: a process that has none left goes on with
    the first one, for 0, so that all have as many."""
    turns = -(-count // world())
    own = [(number, 1.0) for number in range(rank(), count, world())]
    return own + [(0, 0.0)] * (turns - len(own))


def join(number: int, count: int, gpu: int, place: str | Store) -> None:
    """Make this process one of `count`.

    Args:
        gpu: which of its node is this process's.
        place: where they find each other: an address, or a store.
    """
    global _patient
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(gpu)
    where: Any = {"init_method": place} if isinstance(place, str) else {"store": place}
    dist.init_process_group("nccl" if cuda else "gloo", rank=number, world_size=count, **where)
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))


def leave() -> None:
    """Be alone again."""
    dist.destroy_process_group()


def from_lead(make: Callable[[], T]) -> T:
    """What rank 0 makes, in all processes. They wait for it."""
    if world() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made, src=0, group=_patient)
    return made[0]


def everywhere(value: T) -> list[T]:
    """What each process has of something small, in the order of the processes; all must ask."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value, group=_patient)
    return found


def spread(model: nn.Module, strategy: Strategy) -> None:
    """Make a model that is the same in all processes ready for them to share."""
    if world() == 1 or strategy == "replicate":
        return
    # A warning of writing into such a view, which nobody does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world(),))
    for part in (*layers(model), model):
        # Otherwise the root would stay whole after a forward pass without a backward one (validation), and its parameters
        # would not be those that the optimizer knows.
        sharded: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
        sharded.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch's targets already


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, inner ones first: those that a model says, as transformers' do, must not be torn apart."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in reversed(list(model.modules())) if type(module).__name__ in names]


def sum_gradients(model: nn.Module) -> None:
    """Sum gradients over the processes, as one message (FSDP2 has done so in its backward pass)."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if world() == 1 or not grads or is_split(grads[0]):
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(summed.view_as(grad))


def total(value: Tensor) -> Tensor:
    """A number summed over the processes."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def totals(values: dict[str, float]) -> dict[str, float]:
    """Numbers summed over the processes."""
    if world() == 1:
        return values
    summed = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(summed, group=_patient)
    return dict(zip(values, summed.tolist(), strict=True))


def wait_for_all() -> None:
    """However long it takes; a collective on GPUs gives up after ten minutes."""
    if world() > 1:
        dist.barrier(group=_patient)


def is_split(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from the processes it is split over; all must ask."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportReturnType]


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split as another one is."""
    if not is_split(like) or value.shape != like.shape:
        return value.to(like.device) if value.shape == like.shape else value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # pyright: ignore[reportAttributeAccessIssue]


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have whole and the same, split as another one is."""
    if not is_split(like):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # pyright: ignore[reportAttributeAccessIssue]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to be written by rank 0; all must ask, the others get none. Those that were split are put together one by
    one, on the CPU."""
    together: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        one = whole(tensor)
        if rank() == 0:
            together[name] = one.cpu() if is_split(tensor) else one
    return together


def put_together(model: nn.Module, load: Callable[[], nn.Module]) -> nn.Module:
    """In rank 0, a model with the weights of one that is split; all must ask.

    Args:
        load: gives another model with the same names.
    """
    parameters = dict(model.named_parameters())
    if not any(map(is_split, parameters.values())):
        return model
    weights = gathered(parameters)
    if rank():
        return model
    other = load()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(weights[name])
    return other
