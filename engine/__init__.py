"""The spine: recipe, plan, run, store, schema, lineage, command line. Knows no model and no text rule.

From Python::

    import engine
    engine.run("recipes/quickstart.yaml")
    engine.open("quickstart/sft").to_polars()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.store.store import Artifact

__version__ = "0.1.0"


def run(recipe: str, **options: Any) -> dict[str, Artifact]:
    """Run a recipe; return stage name -> artifact. Options as in :func:`engine.execution.runner.run_recipe`."""
    from engine.execution.runner import run_recipe

    return run_recipe(recipe, **options)


def open(name: str, store: str | None = None) -> Artifact:
    """Open an artifact by `RUN/STAGE`, stage name, key prefix or folder.

    Raises:
        engine.errors.UserError: no such artifact, or the name fits several.
    """
    from engine.store.store import Store

    return Store(store).find(name)
