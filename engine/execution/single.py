"""One stage without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.execution.export import export_artifact
from engine.execution.one_stage import View
from engine.execution.runner import run_plan
from engine.plan.recipe import build_recipe, is_external, setting
from engine.store.artifact import Artifact
from engine.store.store import Store


def run_single(
    kind: str,
    given: list[str],
    settings: list[str],
    store: str | None,
    to: Path | None,
    columns: list[str] | None = None,
    view: View | None = None,
    no_wait: bool = False,
) -> Artifact:
    """Run one stage on artifacts (`[PORT=]NAME`) or plain files and return its artifact.

    Args:
        columns: `NAME=COLUMN`: our names for the plain files' columns.

    Raises:
        UserError: as for a recipe with this one stage.
    """
    where = Store(store)
    body: dict[str, Any] = {"kind": kind}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"`--set {text}`: expected FIELD=VALUE.")
        body[key] = setting(text, value)
    mapping: dict[str, str | None] = {}
    for text in columns or []:
        name, equals, column = text.partition("=")
        if not equals:
            raise UserError(f"`--columns {text}`: expected NAME=COLUMN; nothing after `=` leaves NAME out.")
        mapping[name] = column or None
    if mapping and not given:
        body["columns"] = mapping  # of the files that the stage reads itself
    named: dict[str, list[Any]] = {}
    unnamed: list[Any] = []
    for text in given:
        port, equals, name = text.partition("=")
        if not equals or not port.isidentifier():  # a file, or a run of a sweep
            port, name = "", text
        if not is_external(name) and Path(name).exists():
            name = f"./{name}"
        elif not is_external(name):
            name = f"store:{where.find(name).id}"
        plain = mapping and not name.startswith("store:")
        (named.setdefault(port, []) if port else unnamed).append({"path": name, "columns": mapping} if plain else name)
    if named and unnamed:
        raise UserError("name the port of every `--from`, or of none.")
    if named or unnamed:
        body["from"] = named or unnamed
    recipe = build_recipe({"name": kind, "stages": {kind: body}}, {}, f"stage {kind}", Path())
    artifact = run_plan(recipe, where, record=False, no_wait=no_wait, view=view)[kind]
    if to:
        export_artifact(artifact, str(to))
    return artifact
