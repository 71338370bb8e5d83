"""How many processes share a stage that trains, and how, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.stage.stage import NotIdentity
from training.loops.launch import launch
from training.models.lora_settings import Lora

Strategy = Literal["replicate", "shard"]
Processes = Annotated[
    int | None,
    NotIdentity,
    Field(
        ge=1,
        description="That share each step; one for each GPU, or as torchrun says, if left out. Changes rounding only.",
    ),
]
Sharding = Annotated[
    Strategy,
    NotIdentity,
    Field(description="`shard`: FSDP2, for models whose training does not fit one GPU."),
]


def check_processes(
    processes: int | None, sharding: Strategy, lora: Lora | None, rows: int, what: str, together: str = ""
) -> None:
    """See that the rows of a step can be shared so.

    Args:
        rows: of a step; `what` says what they are.
        together: why they can't be taken apart, if they can't.

    Raises:
        ValueError: they can't.
    """
    if processes == 1 and sharding == "shard":
        raise ValueError(
            "`sharding: shard` splits a model over several `processes`, and there is 1: give more, or leave `sharding` out"
        )
    check_launch(processes)
    if together and ((processes or 1) > 1 or sharding == "shard"):
        raise ValueError(f"{together}: leave out `processes` and `sharding`, or give a `micro_batch`")
    if processes and processes > rows:
        raise ValueError(
            f"`processes` ({processes}) are more than a step has {what} ({rows}): some would have nothing to do"
        )
    if lora and lora.quantize and sharding == "shard":
        raise ValueError("`quantize` (QLoRA) can't be split: use `sharding: replicate`, or `lora` without `quantize`")


def check_launch(processes: int | None) -> None:
    """See that torchrun, where it was used, has started as many as a stage asks for; a stage may also be left to one.

    Raises:
        ValueError: it has not.
    """
    launched = launch()
    if launched and processes and 1 < processes != launched.world:
        raise ValueError(
            f"`processes` is {processes}, and torchrun has started {launched.world} (`--nnodes` times `--nproc-per-node`): have it start as "
            "many, or leave `processes` out, which takes all there are"
        )


def split_over(processes: int | None, sharding: Strategy) -> int:
    """Over how many processes a model is split, as far as a recipe says."""
    return (processes or 1) if sharding == "shard" else 1


def largest_part(rows: int, processes: int | None) -> int:
    """Rows of a step that one process has, at the most."""
    return -(-rows // (processes or 1))
