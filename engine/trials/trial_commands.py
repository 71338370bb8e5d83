"""The commands that tell runs apart, and try things out: runs, tag, compare, sweep, preview."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.command_help import complete_run
from engine.command_options import Json, Only, Recipe, Settings, StoreUrl
from engine.view.output import put, put_json

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, NAME@1, or a tag.", show_default=False, autocompletion=complete_run)
]


def offer(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("runs")(_runs)
    app.command("tag")(_tag)
    app.command("compare")(_compare)
    app.command("sweep")(_sweep)
    app.command("preview")(_preview)


def _runs(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="All that this name stood for.", show_default=False, autocompletion=complete_run
        ),
    ] = None,
    store: StoreUrl = None,
    json_: Json = False,
) -> None:
    """List the runs, or the history of one. What its name stood for, and what was changed from each to the next."""
    from engine.store.store import Store
    from engine.view.run_history import lines, run_named, runs

    opened = Store(store)
    rows = runs(opened, run_named(opened, run) if run else None)
    if json_:
        put_json(rows)
        return
    for line in lines(rows):
        put(line, one_line=True)
    if not rows:
        put("Nothing has run in this store yet. Start with: flywheel run recipes/quickstart.yaml")


def _tag(
    run: Run,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="Names for it that stay.", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="Take these tags away.")] = False,
    store: StoreUrl = None,
) -> None:
    """Give what a run stands for a name that stays. `flywheel show TAG/STAGE`; `flywheel gc` then keeps it."""
    from engine.store.store import Store
    from engine.view.run_history import add_tags

    put(f"{add_tags(Store(store), run, tags, remove)} {'has no more' if remove else 'is'} {', '.join(tags)}.")


def _compare(
    first: Run,
    second: Run,
    store: StoreUrl = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="Changed rows to show of each stage.")] = 3,
    json_: Json = False,
) -> None:
    """Tell what differs between two runs. Configuration, numbers with intervals, curves, rows; what is beyond noise."""
    from engine.store.store import Store
    from engine.trials.comparison import compare
    from engine.trials.comparison_text import as_json, lines

    found = compare(Store(store), first, second, rows)
    if json_:
        put_json(as_json(found))
        return
    for line in lines(found):
        put(line, one_line=True)


def _sweep(
    recipe: Recipe,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over", metavar="STAGE.FIELD=VALUE,...", help="Values to try; LOW..HIGH with --random; repeatable."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Each setting with so many seeds of the stages tried.")
    ] = 1,
    drawn: Annotated[
        int | None, typer.Option("--random", metavar="N", min=1, help="N settings drawn, instead of all combinations.")
    ] = None,
    store: StoreUrl = None,
    set_: Settings = None,
    only: Only = None,
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Call the runs by this.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Where to draw the picture [NAME-sweep.svg].")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Stages at once.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes for a stage's work.")] = None,
    json_: Json = False,
) -> None:
    """Run a recipe with several values and seeds. What they share is made once; a table and a picture with intervals."""
    from engine.errors import Waiting
    from engine.execution.progress import Bars, Lines
    from engine.trials.sweep import sweep
    from engine.trials.sweep_text import as_json, draw, lines
    from engine.trials.trial_settings import Trial, parse_over

    def view(number: int, count: int, trial: Trial) -> Bars | Lines:
        if not json_:
            put(f"{number} of {count}: {trial.name}", error=True, one_line=True)
        return Bars()

    found = sweep(
        recipe, [parse_over(one, drawn is not None) for one in over or []], seeds=seeds, drawn=drawn, store=store,
        overrides=set_, only=only, name=name, view=view, jobs=jobs, workers=workers,
    )  # fmt: skip
    if json_:
        put_json(as_json(found))
    for line in () if json_ else lines(found):
        put(line, one_line=True)
    if found.lines and not json_:
        picture = to or Path(f"{found.name}-sweep.svg")
        draw(found, picture)
        put(f"The picture: {picture}", error=True)
    if found.failed:
        raise typer.Exit(Waiting.exit_code if all(isinstance(e, Waiting) for e in found.failed.values()) else 1)


def _preview(
    recipe: Recipe,
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="This stage and what it needs.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Rows to try.")] = 5,
    store: StoreUrl = None,
    set_: Settings = None,
    json_: Json = False,
) -> None:
    """Try a recipe on five rows, and keep nothing. What the real model or server is sent, what comes of it, what a run costs."""
    from engine.execution.progress import Bars
    from engine.trials.preview import Tried, preview
    from engine.trials.preview_text import as_json, lines, total

    def say(text: str) -> None:
        put(f"· {text}", error=True)

    found: list[Tried] = []
    for tried in preview(recipe, stage, rows=rows, store=store, overrides=set_, say=say, view=lambda _: Bars()):
        found.append(tried)
        for line in () if json_ else lines(tried):
            put(line, one_line=True, flush=True)
    if json_:
        put_json(as_json(found))
    for line in () if json_ else total(found):
        put(line)
    if any(one.failed for one in found):
        raise typer.Exit(1)
