"""Options that many commands have."""

from __future__ import annotations

from typing import Annotated

import typer

StoreUrl = Annotated[str | None, typer.Option("--store", help="Folder or URL of artifacts [.flywheel].")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
