"""The commands that keep a store: verify, repair, gc, and those of `flywheel store`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator
from typing import Annotated

import typer

from engine.command_options import Json, StoreUrl

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[ARTIFACT|RUN]", help="RUN, RUN/STAGE or an artifact; everything without it.", show_default=False
    ),
]


def offer(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("verify")(_verify)


@contextlib.contextmanager
def _reading(what: str) -> Generator[Callable[[int, int], None]]:
    """A bar for bytes that are read, where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _verify(target: Target = None, store: StoreUrl = None, json_: Json = False) -> None:
    """Compare every file with what was written, every count and every link between rows. Exit code 1: something is damaged."""
    from engine.store.store import Store
    from engine.upkeep.verification import lines, verify

    with _reading("reading") as tell:
        found = verify(Store(store), target, tell)
    if json_:
        _print_json(found.as_json())
    else:
        print(*lines(found), sep="\n")
    if not found.whole:
        sys.exit(1)
