"""Flywheel from Python: what notebooks, plugins and scripts import, and the only names that are promised to stay.

    import flywheel

    done = flywheel.run("recipes/quickstart.yaml")        # stage name -> Artifact; what the store holds is not run again
    flywheel.plan("recipes/quickstart.yaml")              # what would run, checked, without running it
    flywheel.open("quickstart/sft").path                  # loads in vLLM, transformers and TRL
    flywheel.from_rows([{"text": "..."}], "Document")     # rows of one's own, as an artifact

A stage kind of one's own subclasses `Stage`, takes what `port` says, and does its work in `run(self, job: Job)`.

Names are imported when they are first used, so that `import flywheel` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import Busy, FlywheelError, StageFailed, UserError, Waiting
    from engine.execution.runner import run
    from engine.plan.checks import plan
    from engine.plan.inputs import from_rows
    from engine.plan.plan import Planned
    from engine.plan.recipe import Recipe
    from engine.stage.job import Job, Part
    from engine.stage.stage import NotIdentity, Stage, port
    from engine.store.artifact import Artifact
    from engine.store.schema import row_id
    from engine.store.store import open

__version__ = "0.2.0"

# Name -> the module that has it. Nothing else of Flywheel is promised to stay where it is.
PUBLIC = {
    "Artifact": "engine.store.artifact",
    "Busy": "engine.errors",
    "FlywheelError": "engine.errors",
    "Job": "engine.stage.job",
    "NotIdentity": "engine.stage.stage",
    "Part": "engine.stage.job",
    "Planned": "engine.plan.plan",
    "Recipe": "engine.plan.recipe",
    "Stage": "engine.stage.stage",
    "StageFailed": "engine.errors",
    "UserError": "engine.errors",
    "Waiting": "engine.errors",
    "from_rows": "engine.plan.inputs",
    "open": "engine.store.store",
    "plan": "engine.plan.checks",
    "port": "engine.stage.stage",
    "row_id": "engine.store.schema",
    "run": "engine.execution.runner",
}
__all__ = [
    "Artifact", "Busy", "FlywheelError", "Job", "NotIdentity", "Part", "Planned", "Recipe", "Stage", "StageFailed", "UserError",
    "Waiting", "from_rows", "open", "plan", "port", "row_id", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"flywheel has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _check_rooms() -> None:
    """The folders that Flywheel is made of have everyday names. Where another of that name comes first, stop at once."""
    home = Path(__file__).resolve().parents[1]
    for room in ("engine", "generators", "labeling", "pipelines", "training"):
        spec = find_spec(room)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / room:
            raise ImportError(
                f"flywheel's `{room}` is {home / room}, but Python finds {found or 'none'} first. Start Python from another folder, "
                "or with `python -P`, or rename that one."
            )


_check_rooms()
