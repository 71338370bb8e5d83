"""The command line. Imports what a command needs inside it, so that `flywheel --help` answers at once.

Exit codes: 0 done, 1 the run failed (or another is at it, with `--no-wait`), 2 the input is wrong, 3 waiting for people; stopped by a
signal: 130 SIGINT, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.command_help import (
    HELP,
    CommandTable,
    KindCommand,
    SwitchedCommand,
    complete_artifact,
    complete_kind,
    complete_run,
    room_command,
)
from engine.command_options import Json, Only, Recipe, Settings, StoreUrl
from engine.errors import FlywheelError, UserError, nearest
from engine.trials import trial_commands
from engine.upkeep import upkeep_commands
from engine.view.output import put, put_json, shown_as_text

if TYPE_CHECKING:
    from engine.execution.experience import Estimate
    from engine.plan.plan import Planned
    from engine.store.store import Store


app = typer.Typer(
    name="flywheel",
    help="A synthetic-data and RLHF data engine: from raw text to an aligned assistant, as one recipe that runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=CommandTable,
    context_settings=HELP,
)

NoWait = Annotated[
    bool,
    typer.Option(
        "--no-wait",
        help="Where another run makes a stage right now, leave with exit code 1 instead of waiting for that run.",
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        help="RUN/STAGE, a stage's name, or the start of a key.", show_default=False, autocompletion=complete_artifact
    ),
]
Kind = Annotated[str, typer.Argument(help="A stage kind (`flywheel stages`).", autocompletion=complete_kind)]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(f"flywheel {version('flywheel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None: ...


COMPLETING = "_FLYWHEEL_COMPLETE"  # the variable that a shell sets when TAB is pressed
SWITCHES = {"allow_extra_args": True, "ignore_unknown_options": True}


def _settings(recipe: Path, settings: list[str] | None, arguments: list[str]) -> list[str]:
    """The `--set` values, with the options that this recipe's stages declare (`Stage.switches`) written out."""
    overrides = list(settings or [])
    if arguments:
        from engine.plan.recipe import load_recipe

        steps = load_recipe(recipe, settings).steps.values()
        known = {f"--{name}": name for step in steps for name in type(step.config).switches}
        for argument in arguments:
            if argument not in known:
                offered = f" This recipe's stages also have {', '.join(known)}." if known else ""
                raise UserError(f"there is no option `{argument}`.{nearest(argument, known)}{offered}")
            for step in steps:
                if switch := type(step.config).switches.get(known[argument]):
                    overrides += [f"{step.name}.{name}={value}" for name, value in switch.settings.items()]
    return overrides


@app.command(cls=SwitchedCommand, context_settings=SWITCHES)
def run(
    context: typer.Context,
    recipe: Recipe,
    store: StoreUrl = None,
    set_: Settings = None,
    only: Only = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for people instead of leaving with exit code 3.")] = False,
    no_wait: NoWait = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Ask servers again for the rows of finished stages that did not make it."),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Stages at once; as many as cores and memory allow if not given."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes for a stage's work; as many as there are cores if not given."),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option("--executor", help="Where the work is done: local, or ray (a cluster); else the recipe's."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster; else RAY_ADDRESS, or the one that runs here.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Call the run so; what the name stood for stays as NAME@1, ..."),
    ] = None,
    json_: Json = False,
) -> None:
    """Run a recipe; what the store already holds is not run again."""
    from engine.execution.progress import Bars, Lines
    from engine.execution.runner import run as run_recipe
    from engine.view.spending import spending

    view = Lines() if json_ else Bars()
    done = run_recipe(
        recipe, store=store, overrides=_settings(recipe, set_, context.args), only=only, wait=wait,
        no_wait=no_wait, retry_failed=retry_failed, view=view, jobs=jobs, workers=workers, executor=executor, address=address,
        name=name,
    )  # fmt: skip
    view.total(spending(done.values()))
    if not json_:
        from engine.plan.recipe import load_recipe

        name = name or load_recipe(recipe).name
        put(f"{len(done)} stages done. Look at it: flywheel report {shlex.quote(name)}", error=True)


@app.command(cls=SwitchedCommand, context_settings=SWITCHES)
def plan(
    context: typer.Context,
    recipe: Recipe,
    store: StoreUrl = None,
    set_: Settings = None,
    only: Only = None,
    why: Annotated[bool, typer.Option("--why", help="Tell why each stage would run anew.")] = False,
    gpu: Annotated[
        float | None, typer.Option("--gpu", help="GiB of the GPU to plan for, instead of the one here.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Of an hour of this machine: tells what the run costs.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave servers alone.")] = False,
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="As for `run`.")] = None,
    json_: Json = False,
) -> None:
    """Show what would run, and check everything. What is cached, memory of training, time by what was run here; nothing is written."""
    from dataclasses import asdict

    from engine.execution.experience import estimates
    from engine.execution.machine import device
    from engine.plan.checks import check
    from engine.plan.plan import make_plan, moves_in_words, names_that_move
    from engine.plan.recipe import called, load_recipe
    from engine.redaction import redacted
    from engine.stage.stage import Device
    from engine.store.store import Store

    loaded = called(load_recipe(recipe, _settings(recipe, set_, context.args)), name)
    target = Device(f"a GPU of {gpu:g} GiB", int(gpu * 2**30), gpu=True) if gpu else device()
    where = Store(store or loaded.store)
    notes: list[str] = []
    planned = make_plan(loaded, where, only, target, notes.append)
    found: dict[str, list[str]] = {}
    check(
        loaded, planned, where, offline=offline,
        say=lambda stage, text: found.setdefault(stage.name, []).append(redacted(text)),
    )  # fmt: skip
    if moved := names_that_move(where, loaded.name, planned):
        moves = moves_in_words(where, loaded.name, moved, ("would mean", "would mean"))
        notes.append(f"{moves}; what there is stays, as {loaded.name}@1 or the next number")
    told = estimates(planned, where)
    if json_:
        put_json([
            {"name": p.name, "kind": p.step.kind, "gives": p.gives, "artifact": p.folder, "cached": p.cached,
             "rows": p.rows, "why": p.why, "needs": p.forecast.get("needs"), "estimate": asdict(told[p.name]) if p.name in told else None, "found": found.get(p.name, []), "inputs": {k: [n for n, _ in v] for k, v in p.inputs.items()}}
            for p in planned
        ])  # fmt: skip
        return
    _print_plan(
        planned, why, target.name, [*notes, *(f"{name}: {text}" for name in found for text in found[name])], told, price
    )


def _print_plan(
    planned: list[Planned], why: bool, device: str, found: list[str], told: dict[str, Estimate], price: float | None
) -> None:
    from rich.table import Table

    from engine.execution.experience import duration, in_words
    from engine.view.console import PlainConsole, styled

    table = Table(box=None, pad_edge=False)
    for title in ("", "stage", "kind", "from", "gives", "rows"):
        table.add_column(title, justify="right" if title == "rows" else "left", overflow="fold")
    if why:
        table.add_column("why it runs", overflow="fold")
    for p in planned:
        sources = styled(", ".join(dict.fromkeys(n for given in p.inputs.values() for n, _ in given)), one_line=True)
        row = ["=" if p.cached else "▸", p.name, p.step.kind, sources, p.gives, f"{p.rows:,}" if p.rows else ""]
        table.add_row(*row, *(["; ".join(p.why)] if why else []), style="dim" if p.cached else None)
    console = PlainConsole(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    if found:
        console.print("\nFound:")
    for line in dict.fromkeys(found):
        console.print(f"  {line}")
    needs = [p for p in planned if not p.cached and p.forecast.get("needs")]
    if needs:
        console.print(f"\nMemory, on {device}:")
    for p in needs:
        console.print(f"  {p.name}: {p.forecast['needs']}")
    if told:
        console.print("\nTime and memory, by what was run here:")
        for name, estimate in told.items():
            console.print(f"  {name}: {in_words(estimate, price)}")
        seconds = sum(estimate.wall_s for estimate in told.values())
        unknown = sum(not p.cached for p in planned) - len(told)
        money = f", {seconds / 3600 * price:,.2f} at {price:g} an hour" if price else ""
        more = f" and {unknown} stages whose kinds were never run here" if unknown else ""
        console.print(f"  one after the other about {duration(seconds)}{money}{more}")
    runs = sum(not p.cached for p in planned)
    console.print(f"{runs} to run, {len(planned) - runs} cached.")


@app.command()
def new(
    name: Annotated[str | None, typer.Argument(help="The recipe to copy, or with --from a name for the copy.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="RECIPE", help="The recipe to copy.")] = None,
) -> None:
    """Copy a recipe to start from into this folder. Tells what to change in it; without a name, lists them."""
    from engine.plan.starters import start, starters

    if name is None:
        for starter in starters():
            put(f"{starter.name:<18} {starter.what}")
        return
    files, changes = start(name, from_, Path())
    put(f"Written: {', '.join(map(str, files))}")
    if changes:
        put("What to change:")
    for line, what in changes:
        put(f"  {files[0]}:{line}: {what}")
    put(f"Then: flywheel plan {files[0]}")


@app.command()
def status(
    run_name: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="This run alone.", show_default=False, autocompletion=complete_run),
    ] = None,
    store: StoreUrl = None,
    json_: Json = False,
) -> None:
    """List runs and their stages, and what is under way. When each was, how far it is, what failed and why."""
    from engine.view.status import status_lines, status_of

    opened = _open(store)
    rows = [row for row in status_of(opened) if run_name in (None, row["run"])]
    if run_name and not rows:
        raise UserError(f"no run `{run_name}` in the store {opened.url}.{nearest(run_name, opened.runs())}")
    if json_:
        put_json(rows)
        return
    if not rows:
        put("Nothing has run in this store yet. Start with: flywheel run recipes/quickstart.yaml")
    for line in status_lines(opened, rows):
        put(line, one_line=True)


@app.command()
def show(
    name: Name,
    store: StoreUrl = None,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows.")] = 5,
    rejected: Annotated[bool, typer.Option("--rejected", help="The rows that did not make it, and why.")] = False,
    json_: Json = False,
) -> None:
    """Show an artifact: what made it, its numbers, its rows. Of a stage that failed, what there is and why."""
    from engine.view.show import as_json, print_artifact
    from engine.view.unfinished import find

    artifact = find(_open(store), name)
    if json_:
        put_json(as_json(artifact, rows, rejected))
    else:
        print_artifact(artifact, rows, rejected)


@app.command()
def trace(
    id_: Annotated[str, typer.Argument(metavar="ID", help="A row's id (or its start), an artifact, or a run.")],
    store: StoreUrl = None,
    forward: Annotated[bool, typer.Option("--forward", help="From this row to everything it touched.")] = False,
    json_: Json = False,
    openlineage: Annotated[
        bool, typer.Option("--openlineage", help="Of a run: its stages as OpenLineage events, a line of JSON each.")
    ] = False,
) -> None:
    """Trace a row or model back to where it came from. To people, models, prompts and files; or forwards."""
    from engine.view.lineage import trace_back, trace_forward
    from engine.view.trace import print_trace

    opened = _open(store)
    if openlineage:
        from engine.view.openlineage import events

        for event in events(opened, id_):
            put_json(event, indent=None)
        return
    traced = trace_forward(opened, id_) if forward else trace_back(opened, id_)
    if json_:
        put_json(traced)
    else:
        print_trace(traced)


@app.command()
def report(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The recipe's name.", autocompletion=complete_run)],
    store: StoreUrl = None,
    to: Annotated[Path | None, typer.Option("--to", help="Where to write the page [RUN.html].")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the evaluation table instead.")] = False,
) -> None:
    """Write one self-contained HTML page about a run."""
    from engine.view.report.page import evaluation_table, write_report

    opened = _open(store)
    if json_:
        put_json(evaluation_table(opened, run_name))
        return
    put(write_report(opened, run_name, to or Path(f"{run_name}.html")))


@app.command()
def stages(
    kind: Annotated[
        str | None, typer.Argument(help="Tell the fields of this kind.", autocompletion=complete_kind)
    ] = None,
    json_: Json = False,
) -> None:
    """List the stage kinds, with what each takes and gives."""
    from engine.view.kinds import describe_kind, describe_kinds

    if json_:
        put_json(describe_kinds(kind))
    elif kind:
        put(describe_kind(kind))
    else:
        for row in describe_kinds():
            takes = ", ".join(row["takes"].values()) or "files"
            put(f"{row['kind']:<14} {takes:<34} -> {row['gives']:<13} {row['what']}")


@app.command(cls=KindCommand)
def stage(
    kind: Kind,
    from_: Annotated[list[str] | None, typer.Option("--from", help="[PORT=]ARTIFACT, file or folder.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Copy the result to this folder.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", help="NAME=COLUMN: our name for a column of the files (or a template)."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the kind (`--help` after it).")
    ] = None,
    store: StoreUrl = None,
    no_wait: NoWait = False,
    json_: Json = False,
) -> None:
    """Run one stage without a recipe. It takes artifacts, or files and folders of any format and shape (docs/data.md)."""
    from engine.execution.progress import Bars, Lines
    from engine.execution.single import run_single

    view = Lines() if json_ else Bars()
    artifact = run_single(kind, from_ or [], set_ or [], store, to, columns, view, no_wait)
    if not json_:
        put(to or artifact.id)


@app.command()
def export(
    name: Name,
    to: Annotated[str, typer.Option("--to", help="A folder or fsspec URL; or hub://OWNER/NAME, with HF_TOKEN.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="Of another program: `gguf`, for llama.cpp and Ollama.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the weights in that format: f32, f16, bf16, or auto, as they are.")
    ] = "auto",
    public: Annotated[bool, typer.Option("--public", help="On a hub: for all to read, not private.")] = False,
    store: StoreUrl = None,
) -> None:
    """Copy an artifact out of the store, with a card. Rows in files of their split; a model also as GGUF."""
    from engine.execution.export import export_artifact

    put(export_artifact(_open(store).find(name), to, format_, dtype, public))


@app.command()
def doctor(json_: Json = False) -> None:
    """Tell what this machine can run, and why not."""
    from engine.doctor import examine

    findings = examine()
    if json_:
        put_json(findings)
        return
    for finding in findings:
        mark = {True: "✓", False: "✗", None: "–"}[finding["ok"]]
        put(f"{mark} {finding['what']:<16} {finding['found']}")
    if any(finding["ok"] is False for finding in findings):
        raise typer.Exit(1)


@app.command()
def schema(
    kind: Annotated[str | None, typer.Argument(help="One stage kind; all of a recipe without it.")] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from engine.stage.stage import load
    from engine.view.kinds import recipe_schema

    put_json(load(kind).model_json_schema() if kind else recipe_schema())


trial_commands.offer(app)
upkeep_commands.offer(app)


def _open(store: str | None) -> Store:
    from engine.store.store import Store

    return Store(store)


@app.command()
def completion(
    shell: Annotated[Literal["bash", "zsh"], typer.Argument(help="The shell to complete in.", show_default=False)],
) -> None:
    """Print what completes commands with TAB. `source <(flywheel completion bash)` in ~/.bashrc, `zsh` in ~/.zshrc."""
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    put(get_completion_script(prog_name="flywheel", complete_var=COMPLETING, shell=shell))


def add_command(name: str, target: str, help: str) -> None:
    """Offer a room's command, which is imported when it is called.

    Args:
        target: `module:app`, a typer application that takes the arguments.
    """

    def in_its_place() -> None: ...

    app.command(name, help=help, cls=room_command(target))(in_its_place)


# What a command that was stopped leaves, by its name.
_STOPPED = {
    "run": "what is done is kept: `{command}` goes on from here",
    "stage": "what is done is kept: `{command}` goes on from here",
    "plan": "nothing was written",
    "sweep": "what is done is kept: `{command}` goes on from here",
    "preview": "nothing was kept",
    "export": "the copy is not complete: `{command}` makes it anew",
}


def main() -> None:
    """Entry point of `flywheel`: what goes wrong is said in words, not in tracebacks; so is a signal."""
    from engine.execution import stops

    stops.open_streams()
    with shown_as_text():
        _main()


def _main() -> None:
    from engine.execution import keeper, stops
    from engine.shortage import shortage

    keeper.adopt_orphans()
    stops.listen()
    stops.begin(_stopped)
    sys.argv[0] = "flywheel"  # what others are told who wait for us
    if COMPLETING in os.environ:
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()
    code, words = 0, ""
    try:
        app()
    except SystemExit as ended:
        code = 0 if isinstance(ended.__context__, BrokenPipeError) else ended.code or 0
    except FlywheelError as error:
        code, words = error.exit_code, str(error)
    except BrokenPipeError:  # `| head`
        code = 0
    except KeyboardInterrupt:
        code = stops.exit_code(stops.received() or signal.SIGINT)
    except Exception as error:
        if stops.received():  # made of it by a library
            code = 1
        elif told := shortage(error):
            code, words = 1, told
        else:
            raise
    if (by := stops.received()) and (code or by != signal.SIGINT):  # a chat is ended by Ctrl-C
        code, words = stops.exit_code(by), _stopped(by.name)
    unwritten = _last_words(words)
    stops.spoken()
    sys.exit(unwritten or code)


def _stopped(by: str) -> str:
    from engine.redaction import redacted

    name = next(iter(sys.argv[1:]), "")
    command = redacted(shlex.join(["flywheel", *sys.argv[1:]]))
    told = _STOPPED.get(name, "").format(command=command)
    return f"stopped by {by}; {told}" if told else f"stopped by {by}."


def _last_words(words: str) -> int:
    """Print the message and what waits to be printed. Returns 1 if what was asked for could not be printed, though somebody reads it."""
    from engine.execution import stops
    from engine.shortage import shortage

    for stream in (sys.stdout, sys.stderr):
        try:
            if words and stream is sys.stderr:
                put(f"flywheel: {words}", error=True)
            stream.flush()
        except BrokenPipeError:
            stops.unheard()
        except OSError as error:  # `> /dev/full`
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            if stream is sys.stdout:
                words = words or f"standard output can't be written: {shortage(error) or error}"
                put(f"flywheel: {words}", error=True)
                return 1
    return 0
