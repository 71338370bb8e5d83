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
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.errors import UserError
from engine.stage.job import Job
from training.hardware.memory import TOKENS
from training.loops.processes_settings import Strategy
from training.models.answers import EncodedAnswer
from training.models.padding import chunks

T = TypeVar("T")
_patient: Any = None  # a group; for what one process does while the others wait, however long that takes
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


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


class SharedStage(Protocol):
    """What of a stage says how many processes share it."""

    processes: int | None
    sharding: Strategy


SomeStage = TypeVar("SomeStage", bound=SharedStage)


def share_work(
    stage: SomeStage, job: Job, work: Callable[[SomeStage, Job], None], rows: int, imports: Sequence[str]
) -> None:
    """Do a stage's work in as many processes as it says, or as there are GPUs.

    Args:
        work: what each process does: a function of a module.
        rows: of a step; so many processes at most.
        imports: as for `processes`.

    Raises:
        UserError: a model is to be split, and there is one process.
    """
    there, launched = torch.cuda.device_count(), int(os.environ.get("WORLD_SIZE", "1"))
    count = stage.processes or min(max(1, there), rows)
    if max(count, launched) == 1 and stage.sharding == "shard":
        raise UserError(
            "`sharding: shard` splits a model over several processes, one for each GPU where `processes` is left out, and this "
            f"machine has {there or 'none'}: say how many `processes`, or leave `sharding` out."
        )
    with processes(count, job, partial(work, stage), imports) as ours:
        work(stage, ours)


class Silent(Job):
    """A job as the processes other than rank 0 have it: what they would report, rank 0 reports."""

    def metric(self, step: int, **values: float) -> None: ...

    def summary(self, **values: Any) -> None: ...


def _silent(event: dict[str, Any]) -> None: ...


@contextmanager
def processes(
    count: int, job: Job, work: Callable[[Job], None], imports: Sequence[str] = ("transformers",)
) -> Generator[Job]:
    """Within this, the calling process is rank 0 of `count`; each other one does `work(job)`. Gives the job to work on.

    Args:
        work: what can be pickled: a module's function, with or without arguments (`functools.partial`).
        imports: modules that take long to import, that of `work` among them; done once for all the others.
    """
    silent = Silent(**{field.name: getattr(job, field.name) for field in fields(job)})
    silent.emit = _silent
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun; accelerate leaves a 1 behind
        _join(
            int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]),
            int(os.environ["MASTER_PORT"]), int(os.environ["LOCAL_RANK"]),
        )  # fmt: skip
        try:
            with _as_if_alone():
                yield silent if rank() else job
        finally:
            dist.destroy_process_group()
        return
    if count <= 1:
        yield job
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place: int = free.getsockname()[1]
    # Forked from a process that has imported what is needed and done nothing else: one import for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", *imports])
    others: list[Any] = []
    for number in range(1, count):
        other = context.Process(target=_other, args=(number, count, place, work, silent), daemon=True)
        other.start()
        others.append(other)
    _join(0, count, place, 0)
    try:
        with _as_if_alone():
            yield job
        wait_for_all()
    except BaseException:
        for other in others:  # they wait for what will not come
            other.kill()
        raise
    finally:
        dist.destroy_process_group()
        for other in others:
            other.join(10)
            other.kill()


@contextmanager
def _as_if_alone() -> Generator[None]:
    """Within this, torchrun's variables are hidden: libraries that see them would deal out batches and gradients themselves."""
    kept = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _join(number: int, count: int, place: int, gpu: int) -> None:
    global _patient
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(gpu)
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"tcp://{address}:{place}", rank=number, world_size=count
    )
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))


def _other(number: int, count: int, place: int, work: Callable[[Job], None], job: Job) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    _join(number, count, place, number)
    with _as_if_alone():
        work(job)
    wait_for_all()
    dist.destroy_process_group()


def _die_with_parent() -> None:
    """A killed rank 0 can't tell the others: each waits for its end."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


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
