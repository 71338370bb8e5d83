"""Several processes training one model: each takes its share of every batch.

The process that runs the stage is rank 0 and starts the others on this machine; under torchrun the processes are there
already. Which blocks are in a step does not depend on how many share it, and losses are divided by the targets of the
whole batch, so gradients are summed: the result is that of one process up to the order of additions.

- `replicate`: every process holds the whole model; gradients are summed (any optimizer).
- `shard`: FSDP2 (Zhao et al. 2023, arXiv:2304.11277): weights, gradients and optimizer state are split over the processes.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.llama import Llama

Strategy = Literal["replicate", "shard"]


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(indices: list[int]) -> list[int]:
    """This process's part of a batch."""
    size = len(indices) // world()
    return indices[rank() * size : (rank() + 1) * size]


@contextmanager
def processes(count: int, target: Callable[..., None], *arguments: Any) -> Generator[None]:
    """Within this, the calling process is rank 0 of `count`; each other one runs `target(*arguments)`.

    Args:
        target: a module-level function; it and the arguments are pickled.
    """
    if count <= 1 and "RANK" not in os.environ:
        yield
        return
    if "RANK" in os.environ:  # torchrun
        _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["MASTER_PORT"]))
        try:
            yield
        finally:
            dist.destroy_process_group()
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place: int = free.getsockname()[1]
    # Forked from a process that has imported what is needed and done nothing else: one import for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", target.__module__])
    others: list[Any] = []
    for number in range(1, count):
        other = context.Process(target=_other, args=(number, count, place, target, arguments), daemon=True)
        other.start()
        others.append(other)
    _join(0, count, place)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
        for other in others:
            other.join(10)
            other.kill()


def _join(number: int, count: int, place: int) -> None:
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", number)))
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"tcp://{address}:{place}", rank=number, world_size=count
    )


def _other(number: int, count: int, place: int, target: Callable[..., None], arguments: Any) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    _join(number, count, place)
    target(*arguments)
    dist.barrier()
    dist.destroy_process_group()


def _die_with_parent() -> None:
    """A killed rank 0 can't tell the others: each waits for its end."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def spread(model: Llama, strategy: Strategy) -> None:
    """Make a model that is the same in all processes ready for them to share."""
    if world() == 1 or strategy == "replicate":
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world(),))
    for part in (*model.model.layers, model):
        # Otherwise the root would stay whole after a forward pass without a backward one (validation), and its parameters
        # would not be those that the optimizer knows.
        sharded: Any = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
        sharded.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch's targets already


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


def is_split(tensor: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from the processes it is split over; all must ask."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportReturnType]


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split as another one is."""
    if not is_split(like) or value.shape != like.shape:
        return value.to(like.device) if value.shape == like.shape else value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # pyright: ignore[reportAttributeAccessIssue]
