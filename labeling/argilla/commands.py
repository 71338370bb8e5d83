"""`flywheel argilla`: the Argilla server of this machine.

Each command imports what it needs by itself, so that `--help` loads neither server nor client.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.view.output import put, put_json

if TYPE_CHECKING:
    from labeling.argilla.server import LocalServer
    from labeling.tool.oversight import DatasetStatus

app = typer.Typer(
    help="The Argilla server of this machine: real server, real UI, loopback only.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
Home = Annotated[Path | None, typer.Option("--home", help="Its folder [$FLYWHEEL_HOME/argilla].")]


def _tell(step: str) -> None:
    put(f"· {step}", error=True)


@app.command()
def up(
    home: Home = None,
    port: Annotated[int | None, typer.Option(help="Kept for later starts [6900, or any free one].")] = None,
    database_url: Annotated[
        str | None,
        typer.Option(envvar="FLYWHEEL_ARGILLA_DATABASE_URL", help="postgresql://... instead of a SQLite file; kept."),
    ] = None,
) -> None:
    """Start it, or find the one that runs."""
    from labeling.argilla import server

    running = server.up(home, port=port, database_url=database_url, on_step=_tell)
    put(_login(running))


@app.command()
def down(home: Home = None) -> None:
    """Stop it; nothing is lost."""
    from labeling.argilla import server

    put("stopped" if server.down(home) else "no Argilla server ran")


@app.command()
def status(
    dataset: Annotated[str | None, typer.Argument(help="One dataset's name [all].")] = None,
    home: Home = None,
    json_: Annotated[bool, typer.Option("--json")] = False,
    judgements: Annotated[
        bool, typer.Option(help="Read what was judged: time a record, agreement, disputed records.")
    ] = True,
    watch: Annotated[
        float | None, typer.Option(help="Look again every so many seconds, until interrupted.", min=1)
    ] = None,
) -> None:
    """Where it runs, how far labeling is, who agrees with whom, and which records are disputed."""
    from labeling.argilla import server
    from labeling.argilla.client import connect
    from labeling.argilla.dataset_status import dataset_statuses

    remote = os.environ.get("ARGILLA_API_URL") if home is None else None
    running = None if remote else server.status(home)
    if running is None and not remote:
        put("null" if json_ else "no Argilla server runs; start one with `flywheel argilla up`")
        raise typer.Exit(0 if json_ else 1)
    facts: dict[str, Any] = {"url": remote}
    line = str(remote)
    if running is not None:
        facts = {"url": running.url, "user": running.username, "password_file": str(running.password_file)}
        facts |= {"uptime_s": round(running.uptime), "pids": running.pids}
        line = f"{_login(running)}  (Argilla {running.version})"
    client = connect(home=home)
    while True:
        datasets = list(dataset_statuses(client, dataset, judgements=judgements))
        if json_:
            put_json({**facts, "datasets": [_facts(found) for found in datasets]})
        else:
            put(line)
            for found in datasets:
                _print(found)
        if watch is None:
            return
        time.sleep(watch)


def _facts(found: DatasetStatus) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": found.name,
        "workspace": found.workspace,
        "total": found.progress.total,
        "completed": found.progress.completed,
        "users": {name: asdict(counts) for name, counts in found.progress.users.items()},
        "tables": [table.as_json() for table in found.tables],
        "alpha": found.alpha and found.alpha.as_json(),
        "agreement_over_time": found.agreement,
    }


def _login(running: LocalServer) -> str:
    return f"{running.url}  user {running.username}, password in {running.password_file}"


def _print(found: DatasetStatus) -> None:
    put(f"  {found.workspace}/{found.name:<32} {found.progress.completed:>6} of {found.progress.total} records ranked")
    if not found.tables:
        for name, counts in found.progress.users.items():
            put(f"    {name:<24} {counts.submitted:>6} submitted, {counts.draft} drafts, {counts.discarded} discarded")
    for table in found.tables:
        if not table.rows:
            continue
        cells = [[str(cell) for cell in row] for row in (table.columns, *table.rows)]
        width = [max(len(row[k]) for row in cells) for k in range(len(table.columns))]
        put(f"    {table.title}", one_line=True)
        for row, link in zip(cells, [None, *table.links], strict=True):
            line = "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()
            put(f"      {line}" + (f"  {link}" if link else ""), one_line=True)
    if found.alpha is not None and found.alpha.value == found.alpha.value:  # defined
        told = found.alpha
        sure = f" ({told.low:.2f} to {told.high:.2f})" if told.low == told.low else ""
        put(f"    Krippendorff's alpha {told.value:.2f}{sure} over {told.prompts} records judged by several")
    if len(found.agreement) > 1:
        put("    agreement over time: " + " ".join(f"{share:.0%}" for _, share in found.agreement))


@app.command()
def push(
    file: Annotated[Path, typer.Argument(help='JSONL: {"id", "prompt", "answers"} a line.')],
    dataset: Annotated[str, typer.Option(help="Its name in Argilla; made if it isn't there.")],
    home: Home = None,
    workspace: Annotated[str, typer.Option()] = "flywheel",
    asked: Annotated[str, typer.Option(help="ranking, pairwise or rating.")] = "ranking",
    aspect: Annotated[
        list[str] | None, typer.Option(help="Rate every answer by this, from 1 to 5; repeatable.")
    ] = None,
    flag: Annotated[list[str] | None, typer.Option(help="Something an annotator may tick; repeatable.")] = None,
    top: Annotated[int | None, typer.Option(help="Rank the best this many alone.")] = None,
    correction: Annotated[bool, typer.Option(help="Ask for a better answer, too.")] = False,
    per_record: Annotated[int, typer.Option(help="How many annotators each record goes to.")] = 1,
    annotator: Annotated[
        list[str] | None, typer.Option(help="Deal the records out among these, who see no others; repeatable.")
    ] = None,
) -> None:
    """Have the answers in a file judged, without a recipe. Pushing again adds what is new."""
    from engine.errors import UserError
    from labeling.argilla import record_files
    from labeling.argilla.client import connect
    from labeling.tool.task import RankingTask

    if asked not in ("ranking", "pairwise", "rating"):
        raise UserError(f"--asked is {asked!r}; expected ranking, pairwise or rating.")
    records = record_files.read_records(file)
    task = RankingTask(
        dataset, len(records[0].answers), workspace, asked=asked, aspects=tuple(aspect or ()), top=top,
        correction=correction, flags=tuple(flag or ()), min_submitted=per_record,
    )  # fmt: skip
    client = connect(home=home)
    done, urls = record_files.push(client, task, records, tuple(annotator or ()))
    if annotator:
        put(f"annotators' passwords are in {client.annotators_file}")
    put(f"{done.new} new records, {done.present} were there: {urls[0] if len(urls) == 1 else ''}".rstrip())
    if len(urls) > 1:
        for url in urls:
            put(f"  {url}")


@app.command()
def pull(
    dataset: Annotated[str, typer.Argument(help="Its name in Argilla.")],
    to: Annotated[Path, typer.Option(help="A JSONL file: one judgement a line.")],
    home: Home = None,
    workspace: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Write what annotators said to a file: ranks with ties, ratings, corrections, flags, drafts and discards told apart."""
    from labeling.argilla import record_files
    from labeling.argilla.client import connect

    put(f"{record_files.pull(connect(home=home), dataset, to, workspace)} judgements in {to}")


@app.command()
def backup(to: Annotated[Path, typer.Argument(help="A file; it will hold credentials.")], home: Home = None) -> None:
    """Write everything to one file, also while it runs."""
    from labeling.argilla import server

    put(server.backup(home, to))


@app.command()
def restore(frm: Annotated[Path, typer.Argument(metavar="FROM")], home: Home = None) -> None:
    """Put a backup in place of what is there (kept beside it); the server has to be stopped."""
    from labeling.argilla import server

    put(server.restore(home, frm))
