"""The executor that a run asks for."""

from __future__ import annotations

from typing import Any

from engine.errors import UserError
from engine.execution.executors.processes import Processes
from engine.stage.executor import Executor


def open_executor(options: dict[str, Any]) -> Executor:
    """
    Args:
        options: of the run: `executor` ("local" or "ray"), `address` of the cluster, `workers` (processes; a core each if None).

    Raises:
        UserError: there is no such executor; there is no cluster (`RayExecutor`).
    """
    match options.get("executor") or "local":
        case "local":
            return Processes(options.get("workers"))
        case "ray":
            from engine.execution.executors.ray import RayExecutor

            return RayExecutor(options.get("address"), options.get("workers"))
        case other:
            raise UserError(f"there is no executor `{other}`; there are `local` and `ray`.")
