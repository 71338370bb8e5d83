"""What a plan shows its stages before anything runs: the first rows of their inputs, and where their models are.

Only stages that would run are shown anything, and of an input that is in the store already, its rows there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from engine.errors import UserError
from engine.plan.inputs import External
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import Recipe, load_recipe
from engine.stage.preflight import Glimpse, Preflight
from engine.store import schema
from engine.store.store import Store

ROWS = 20


def check(
    recipe: Recipe,
    planned: list[Planned],
    store: Store,
    *,
    offline: bool = False,
    say: Callable[[Planned, str], None] = lambda stage, text: None,
) -> None:
    """Have every stage that would run look at what it will be given.

    Args:
        offline: leave servers alone.
        say: is told what was found, by stage.

    Raises:
        UserError: what would fail in the run, with the recipe's file and line.
    """
    for stage in planned:
        if stage.cached:
            continue

        def told(text: str, stage: Planned = stage) -> None:
            say(stage, text)

        try:
            inputs = {
                port: [_glimpse(label, source, store, told) for label, source in given]
                for port, given in stage.inputs.items()
            }
            stage.step.config.check(Preflight(inputs, recipe.base, offline, told))
        except UserError as error:
            raise UserError(f"{recipe.file}:{stage.step.line}: stage `{stage.name}`: {error}") from None


def _glimpse(label: str, source: Planned | External, store: Store, say: Callable[[str], None]) -> Glimpse:
    """What is known of one input."""
    kind = source.gives if isinstance(source, Planned) else source.kind
    known = Glimpse(label, kind)
    if isinstance(source, Planned):
        known = replace(known, config=source.forecast.get("config"))
    if isinstance(source, Planned):
        found = store.get(source.folder) if source.cached else None
    else:
        found, _ = source.there(store)
    if found:
        if kind in schema.MODELS:
            # Its weights are looked at when they are loaded.
            return replace(known, model=found.manifest.get("hub") or str(found.place if store.local else found.path))
        batch = next(found.batches(rows=ROWS), None) if kind != "TokenBlock" else None
        return replace(known, rows=None if batch is None else pa.Table.from_batches([batch]).slice(0, ROWS))
    if isinstance(source, Planned):
        return known
    if source.importer:
        return known  # a model only once it is imported
    if source.reading is None:
        return replace(known, model=str(source.place or source.name.removeprefix("hub:")))
    from engine.reader.typed_rows import sample

    rows, findings = sample(list(source.files), source.reading, ROWS)
    if not len(rows):
        raise UserError(
            f"none of the first rows of {source.name} can be read as {kind}: {findings.first or 'there are none'}."
        )
    say(f"{source.name}, its first rows: {findings}")
    return replace(known, rows=rows)


def plan(
    recipe: str | Path,
    *,
    store: str | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    offline: bool = False,
) -> list[Planned]:
    """What would run, in order, and what is cached: everything is checked and nothing is written.

    Args:
        offline: leave servers alone. The others as in `flywheel.run`.

    Raises:
        UserError: the recipe is wrong.
    """
    loaded = load_recipe(recipe, overrides)
    where = Store(store or loaded.store)
    planned = make_plan(loaded, where, only)
    check(loaded, planned, where, offline=offline)
    return planned
