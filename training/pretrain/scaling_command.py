"""`flywheel scaling RUN --size DEPTH`: what a larger model would give, before it is paid for."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.command_options import Json, StoreUrl
from engine.errors import FlywheelError
from engine.view.output import put, put_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def scaling(
    run: Annotated[str, typer.Argument(help="A sweep over sizes of `pretrain`: its recipe's name.")],
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="To foretell: a depth, or fields of `size` as YAML; repeatable."),
    ] = None,
    store: StoreUrl = None,
    json_: Json = False,
) -> None:
    """Foretell what a larger pretraining will give. A law is fitted to four sizes or more of a sweep."""
    from engine.store.store import Store
    from training.pretrain.scaling_forecast import as_json, forecast, lines

    try:
        found = forecast(Store(store), run, size or [])
        if json_:
            put_json(as_json(found))
            return
        for line in lines(found):
            put(line, one_line=True)
    except FlywheelError as error:
        put(f"flywheel: {error}", error=True)
        raise typer.Exit(error.exit_code) from None
