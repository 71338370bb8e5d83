"""`flywheel argilla`: the Argilla server of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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
def status(home: Home = None, json_: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Where it runs, and how far labeling is."""
    from labeling import server
    from labeling.argilla import connect, every_progress

    running = server.status(home)
    if running is None:
        typer.echo("null" if json_ else "no Argilla server runs; start one with `flywheel argilla up`")
        raise typer.Exit(0 if json_ else 1)
    progress = every_progress(connect(home=home))
    if json_:
        told = {"url": running.url, "user": running.username, "password_file": str(running.password_file)}
        typer.echo(
            json.dumps(
                {**told, "uptime_s": round(running.uptime), "pids": running.pids, "datasets": progress}, indent=1
            )
        )
        return
    typer.echo(
        f"{running.url}  user {running.username}, password in {running.password_file}  (Argilla {running.version})"
    )
    for dataset in progress:
        typer.echo(
            f"  {dataset['workspace']}/{dataset['name']:<32} {dataset['completed']:>6} of {dataset['total']} records ranked"
        )
        for name, counts in dataset["users"].items():
            typer.echo(
                f"    {name:<24} {counts['submitted']:>6} submitted, {counts['draft']} drafts, {counts['discarded']} discarded"
            )


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
