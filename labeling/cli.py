"""`flywheel argilla`: the Argilla server of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from labeling.argilla import Overview

app = typer.Typer(help="The Argilla server of this machine: real server, real UI, loopback only.", no_args_is_help=True)
Home = Annotated[Path | None, typer.Option("--home", help="Its folder [$FLYWHEEL_HOME/argilla].")]


def _tell(step: str) -> None:
    typer.echo(f"· {step}", err=True)


@app.command()
def up(
    home: Home = None,
    port: Annotated[int | None, typer.Option(help="Kept for later starts [6900, or any free one].")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://... instead of a SQLite file; kept.")] = None,
) -> None:
    """Start it, or find the one that runs."""
    from labeling import server

    running = server.up(home, port=port, database_url=database_url, on_step=_tell)
    typer.echo(f"{running.url}  user {running.username}, password in {running.password_file}")


@app.command()
def down(home: Home = None) -> None:
    """Stop it; nothing is lost."""
    from labeling import server

    typer.echo("stopped" if server.down(home) else "no Argilla server ran")


@app.command()
def status(
    home: Home = None,
    json_: Annotated[bool, typer.Option("--json")] = False,
    judgements: Annotated[
        bool, typer.Option(help="Read what was judged: time a record, agreement, disputed records.")
    ] = True,
) -> None:
    """Where it runs, how far labeling is, who agrees with whom, and which records are disputed."""
    from dataclasses import asdict

    from labeling import server
    from labeling.argilla import connect, overview

    remote = os.environ.get("ARGILLA_API_URL") if home is None else None
    running = None if remote else server.status(home)
    if running is None and not remote:
        typer.echo("null" if json_ else "no Argilla server runs; start one with `flywheel argilla up`")
        raise typer.Exit(0 if json_ else 1)
    datasets = list(overview(connect(home=home), judgements=judgements))
    told: dict[str, Any] = {"url": remote}
    line = str(remote)
    if running is not None:
        told = {"url": running.url, "user": running.username, "password_file": str(running.password_file)}
        told |= {"uptime_s": round(running.uptime), "pids": running.pids}
        line = f"{running.url}  user {running.username}, password in {running.password_file}"
        line += f"  (Argilla {running.version})"
    if json_:
        told["datasets"] = [
            {
                "name": d.name, "workspace": d.workspace, "total": d.progress.total, "completed": d.progress.completed,
                "users": {name: asdict(counts) for name, counts in d.progress.users.items()},
                "tables": [table.as_json() for table in d.tables], "agreement_over_time": d.agreement,
            }
            for d in datasets
        ]  # fmt: skip
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(line)
    for dataset in datasets:
        _show(dataset)


def _show(found: Overview) -> None:
    typer.echo(
        f"  {found.workspace}/{found.name:<32} {found.progress.completed:>6} of {found.progress.total} records ranked"
    )
    if not found.tables:
        for name, counts in found.progress.users.items():
            typer.echo(
                f"    {name:<24} {counts.submitted:>6} submitted, {counts.draft} drafts, {counts.discarded} discarded"
            )
    for table in found.tables:
        if not table.rows:
            continue
        cells = [[str(cell) for cell in row] for row in (table.columns, *table.rows)]
        width = [max(len(row[k]) for row in cells) for k in range(len(table.columns))]
        typer.echo(f"    {table.title}")
        for row, link in zip(cells, [None, *table.links], strict=True):
            line = "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()
            typer.echo(f"      {line}" + (f"  {link}" if link else ""))
    if len(found.agreement) > 1:
        typer.echo("    agreement over time: " + " ".join(f"{share:.0%}" for _, share in found.agreement))


@app.command()
def backup(to: Annotated[Path, typer.Argument(help="A file; it will hold credentials.")], home: Home = None) -> None:
    """Write everything to one file, also while it runs."""
    from labeling import server

    typer.echo(server.backup(home, to))


@app.command()
def restore(frm: Annotated[Path, typer.Argument(metavar="FROM")], home: Home = None) -> None:
    """Put a backup in place of what is there (kept beside it); the server has to be stopped."""
    from labeling import server

    typer.echo(server.restore(home, frm))
