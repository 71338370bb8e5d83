"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.command_help import complete_recipe

StoreUrl = Annotated[str | None, typer.Option("--store", help="Folder or URL of artifacts [.flywheel].")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Recipe = Annotated[Path, typer.Argument(help="A recipe (YAML).", show_default=False, autocompletion=complete_recipe)]
Settings = Annotated[list[str] | None, typer.Option("--set", help="STAGE.FIELD=VALUE, on top of the recipe.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="This stage and what it needs; repeatable.")]
