"""The commands that keep a store: verify, repair, gc, and those of `flywheel store`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated

import typer

from engine.command_options import Json, StoreUrl

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[ARTIFACT|RUN]", help="RUN, RUN/STAGE or an artifact; everything without it.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")]


def offer(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("verify")(_verify)
    app.command("repair")(_repair)


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
        raise typer.Exit(1)


def _repair(
    target: Target = None,
    store: StoreUrl = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="The recipe's folder, for files that stages read, where it moved.")
    ] = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make anew what is damaged, and what was made of damage; the bytes are those of before. Exit code 1: something is left."""
    from dataclasses import asdict

    from engine.execution.progress import Bars
    from engine.store.store import Store
    from engine.upkeep.repair import Mended, repair

    with contextlib.ExitStack() as bar:
        tell = bar.enter_context(_reading("looking"))

        def bars() -> Bars:
            bar.close()  # a terminal has one at a time
            return Bars()

        def say(one: Mended) -> None:
            bar.close()
            if not json_:
                print(one)

        view = None if json_ else bars
        mended = repair(Store(store), target, base=base, dry_run=dry_run, view=view, tell=tell, say=say)
    if json_:
        _print_json([asdict(one) for one in mended])
    elif not mended:
        print("Nothing is damaged.")
    if not all(one.well for one in mended):
        raise typer.Exit(1)
