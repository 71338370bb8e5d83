"""One stage without a recipe, and artifacts out of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec

from engine.errors import UserError
from engine.execution.runner import run_plan
from engine.plan.recipe import build_recipe, is_external, setting
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.store.writer import CARD
from engine.view.card import card


def run_single(kind: str, given: list[str], settings: list[str], store: str | None, to: Path | None) -> Artifact:
    """Run one stage on artifacts (`[PORT=]NAME`) or plain files and return its artifact.

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
    named: dict[str, list[str]] = {}
    unnamed: list[str] = []
    for text in given:
        port, equals, name = text.partition("=")
        if not equals or "/" in port:
            port, name = "", text
        if not is_external(name) and Path(name).exists():
            name = f"./{name}"
        elif not is_external(name):
            name = f"store:{where.find(name).id}"
        (named.setdefault(port, []) if port else unnamed).append(name)
    if named and unnamed:
        raise UserError("name the port of every `--from`, or of none.")
    if named or unnamed:
        body["from"] = named or unnamed
    recipe = build_recipe({"name": kind, "stages": {kind: body}}, {}, f"stage {kind}", Path())
    artifact = run_plan(recipe, where, record=False)[kind]
    if to:
        export_artifact(artifact, str(to))
    return artifact


def export_artifact(artifact: Artifact, to: str) -> str:
    """Copy an artifact's files to a folder or URL, with a README.md card; data and model files as they are.

    Returns:
        where it went.
    """
    fs, root = fsspec.core.url_to_fs(to)  # pyright: ignore
    fs.makedirs(root, exist_ok=True)
    for name in artifact.files():
        target = f"{root.rstrip('/')}/{name}"
        fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(target, artifact.read_file(name))
    told = card(Store(artifact.store.url), artifact.id, artifact.manifest)
    fs.pipe_file(f"{root.rstrip('/')}/{CARD}", told.encode())
    return to
