"""What torchrun told this process when it started it, one of several on one machine or on many. Imports nothing heavy.

Its variables are hidden from all that comes after: libraries that see them take themselves for one of its processes, and would deal
out batches and gradients once more. What training needs of them stands in a variable of our own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

KEPT = "FLYWHEEL_LAUNCH"
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE",
            "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """
    Attributes:
        rank: this process's number, of `world`; 0 leads the run.
        gpu: its number among the `beside` that are on its node.
        address, port: of the store that torchrun's agents keep.
        attempt: how often torchrun has started all of them again.
    """

    rank: int
    world: int
    gpu: int
    beside: int
    address: str
    port: int
    attempt: int


def launch() -> Launch | None:
    """How this process, or the one that leads the run it works for, was started; None: not by torchrun."""
    kept = os.environ.get(KEPT)
    return Launch(**json.loads(kept)) if kept else None


def take_launch() -> Launch | None:
    """In the process that torchrun started: hide its variables and keep what they say. None where there is one process alone."""
    told = {
        name: os.environ.pop(name) for name in list(os.environ) if name in TORCHRUN or name.startswith("TORCHELASTIC_")
    }
    if int(told.get("WORLD_SIZE", "1")) == 1:
        return None
    made = Launch(
        int(told["RANK"]), int(told["WORLD_SIZE"]), int(told["LOCAL_RANK"]), int(told["LOCAL_WORLD_SIZE"]),
        told["MASTER_ADDR"], int(told["MASTER_PORT"]), int(told.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )  # fmt: skip
    os.environ[KEPT] = json.dumps(asdict(made))
    return made
