"""The commands that keep a store: verify, repair, gc, and those of `flywheel store`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated

import typer

from engine.command_options import Json, StoreUrl
from engine.view.output import put, put_json

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[ARTIFACT|RUN]", help="RUN, RUN/STAGE or an artifact; everything without it.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")]
Sent = Annotated[str, typer.Argument(metavar="RUN|ARTIFACT", help="With all that it rests on.", show_default=False)]
As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="Call the run so, where its name is taken.")]


def offer(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("verify")(_verify)
    app.command("repair")(_repair)
    app.command("gc")(_gc)
    stores = typer.Typer(help="Bring a run to another store, or machine.", no_args_is_help=True)
    stores.command("copy")(_copy)
    stores.command("export")(_export)
    stores.command("import")(_import)
    app.add_typer(stores, name="store")


@contextlib.contextmanager
def _reading(what: str) -> Generator[Callable[[int, int], None]]:
    """A bar for bytes that are read, where somebody looks."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from engine.view.console import PlainConsole

    console = PlainConsole(stderr=True)
    columns = (TextColumn(what), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _verify(target: Target = None, store: StoreUrl = None, json_: Json = False) -> None:
    """Compare every file with what was written. And every count and link between rows; exit code 1: something is damaged."""
    from engine.store.store import Store
    from engine.upkeep.verification import lines, verify

    with _reading("reading") as tell:
        found = verify(Store(store), target, tell)
    if json_:
        put_json(found.as_json())
    else:
        put("\n".join(lines(found)))
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
    """Make anew what is damaged. And what was made of damage; the bytes are those of before. Exit code 1: something is left."""
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
                put(one)

        view = None if json_ else bars
        mended = repair(Store(store), target, base=base, dry_run=dry_run, view=view, tell=tell, say=say)
    if json_:
        put_json([asdict(one) for one in mended])
    elif not mended:
        put("Nothing is damaged.")
    if not all(one.well for one in mended):
        raise typer.Exit(1)


def _gc(
    store: StoreUrl = None,
    dry_run: DryRun = False,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="TIME", help="Only what is so old: 12h, 7d, 4w. [7d; 1h with --quota]"),
    ] = None,
    keep_last: Annotated[
        int, typer.Option("--keep-last", metavar="N", min=0, help="Of each kind keep the N youngest that no run names.")
    ] = 0,
    quota: Annotated[
        str | None,
        typer.Option("--quota", metavar="SIZE", help="Only the oldest, until the store holds no more than 20GB."),
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Answers of servers, too: asked again, they are paid again.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json_: Json = False,
) -> None:
    """Remove what no run needs, after asking. Old artifacts, scratch, copies, leftovers. Exit code 1: more than the quota is needed."""
    import time
    from dataclasses import asdict

    from engine.errors import UserError
    from engine.store.store import Store
    from engine.upkeep.collection import find_unneeded, in_bytes, in_time, remove, seconds, size

    opened = Store(store)
    found = find_unneeded(
        opened, older=seconds(older_than) if older_than else None, keep_last=keep_last,
        quota=size(quota) if quota else None, answers=answers,
    )  # fmt: skip
    told = [] if json_ else found.unneeded
    for one in told:
        age = in_time(time.time() - one.modified)
        put(f"{in_bytes(one.size):>10}  {age:>6}  {one.what:<10}  {one.place}  ({one.why})", one_line=True)
    freed, removed = in_bytes(found.freed), list[str]()
    if not json_:
        put("\n".join([*(f"· {note}" for note in found.notes), f"{freed} of {in_bytes(found.held)} can go."]))
    if found.unneeded and not dry_run:
        if not yes and (json_ or not (sys.stdin.isatty() and sys.stdout.isatty())):
            raise UserError("nothing was removed: where nobody can be asked, `--yes` says that all of this may go.")
        if yes or typer.confirm(f"Remove {len(found.unneeded)} things for good?"):
            removed = [one.place for one in found.unneeded if remove(opened, one)]
            left = len(found.unneeded) - len(removed)
            if not json_:
                put(f"{len(removed)} removed{f', {left} are in use by now' if left else ''}.")
    if json_:
        table = [asdict(one) for one in found.unneeded]
        put_json(
            {"held": found.held, "unneeded": table, "removed": removed, "over_quota": found.over, "notes": found.notes}
        )
    if found.over:
        if not json_:
            put(f"What is needed is {in_bytes(found.over)} more than the quota.")
        raise typer.Exit(1)


def _copy(
    name: Sent,
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="The other store: a folder, or a URL as `s3://bucket/store`.")
    ],
    as_: As = None,
    store: StoreUrl = None,
) -> None:
    """Copy a run or an artifact to another store, each file compared with its digest; again, it goes on where it was."""
    from engine.store.store import Store
    from engine.upkeep.transfer import copy

    with _reading("copying") as tell:
        arrival = copy(Store(store), name, Store(to), as_, tell)
    put(f"{to}: {arrival}.")


def _export(
    name: Sent,
    to: Annotated[Path, typer.Option("--to", metavar="FILE.tar", help="The file to write.")],
    store: StoreUrl = None,
) -> None:
    """Write a run or an artifact as one file, the same bytes each time; `flywheel store import` takes it in."""
    from engine.store.store import Store
    from engine.upkeep.collection import in_bytes
    from engine.upkeep.transfer import export

    with _reading("writing") as tell:
        cargo = export(Store(store), name, to, tell)
    put(f"{to}: {len(cargo.artifacts)} artifacts, {in_bytes(cargo.bytes)}.")


def _import(
    file: Annotated[Path, typer.Argument(help="What `flywheel store export` wrote.", show_default=False)],
    as_: As = None,
    store: StoreUrl = None,
) -> None:
    """Take such a file into a store. Nothing that is there is replaced."""
    from engine.store.store import Store
    from engine.upkeep.transfer import import_file

    with _reading("reading") as tell:
        arrival = import_file(Store(store), file, as_, tell)
    put(f"{arrival}. Look at it: flywheel status")
