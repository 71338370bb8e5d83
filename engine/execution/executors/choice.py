"""The executor that a run asks for."""

from __future__ import annotations

import os
from typing import Any

from engine.errors import UserError
from engine.execution.executors.processes import Processes
from engine.stage.executor import Executor

LEAST = 16 << 20  # bytes on disk: two seconds of work or less, of which processes would take half a second to start
LEAST_SET = "FLYWHEEL_SPREAD_BYTES"  # another number of bytes


def open_executor(options: dict[str, Any]) -> Executor:
    """
    Args:
        options: of the run: `executor` ("local" or "ray"), `address` of the cluster, `workers` (processes; a core each if None).

    Raises:
        UserError: there is no such executor; there is no cluster (`RayExecutor`).
    """
    least = int(os.environ.get(LEAST_SET) or LEAST)
    match options.get("executor") or "local":
        case "local":
            return Processes(options.get("workers"), least)
        case "ray":
            from engine.execution.executors.ray import RayExecutor

            return RayExecutor(options.get("address"), options.get("workers"), least)
        case other:
            raise UserError(f"there is no executor `{other}`; there are `local` and `ray`.")
