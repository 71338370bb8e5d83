"""One file that holds a local Argilla: its database, credentials and signing key."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine.errors import UserError
from labeling.argilla.server import local

_KEPT = ("settings.json", "owner.password", "owner.apikey", "annotators.json", "last_port")
_SQLITE, _POSTGRESQL = "argilla.db", "argilla.dump"


def backup(home: Path | None, to: Path) -> Path:
    """Write the server of `home` to the file `to` (a tar, mode 0600: it holds credentials). Works while it
    runs.

    The copy of the database is of one instant (SQLite's online backup, checked; pg_dump for PostgreSQL) and whole before
    the file appears. Raises UserError when there is no server in `home`, or pg_dump is needed and fails.
    """
    home = local.resolve(home)
    to = Path(to).absolute()
    if not (home / "settings.json").exists():
        raise UserError(f"There is no Argilla server in {home}: nothing to back up.")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".argilla-backup-") as folder:
        copy = _copy(local.read_settings(home)["database_url"], Path(folder))
        aside = Path(folder) / "backup.tar"
        with (
            os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            tar.add(copy, copy.name)
            for name in _KEPT:
                if (home / name).exists():
                    tar.add(home / name, name)
        aside.replace(to)
    return to


def restore(home: Path | None, frm: Path) -> Path:
    """Put a backup in place of the server of `home`, which must be stopped. What was there is kept beside it.

    A backup from PostgreSQL goes back into the database it names (its address is in the backup), and what that held is
    dumped beside the home first. Returns `home`. Raises UserError when the server runs, or `frm` is not a backup.
    """
    home = local.resolve(home)
    local.refuse_running(home)
    frm = Path(frm)
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".argilla-restore-") as folder:
        fresh = Path(folder) / "home"
        fresh.mkdir(mode=0o700)
        try:
            with tarfile.open(frm) as tar:
                names = set(tar.getnames())
                held = names & {_SQLITE, _POSTGRESQL}
                if len(held) != 1 or not {"settings.json"} <= names - held <= set(_KEPT):
                    raise UserError(f"{frm} is not a backup of an Argilla server: it holds {sorted(names)[:5]}.")
                tar.extractall(fresh, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{frm} can't be read as a backup: {error}.") from error
        for path in fresh.iterdir():
            path.chmod(0o600)
        settings = json.loads((fresh / "settings.json").read_text())
        place = local.settings_of_place(home)  # the backup may come from another folder
        if held == {_POSTGRESQL}:
            place.pop("database_url")
            dump = (fresh / _POSTGRESQL).rename(Path(folder) / _POSTGRESQL)
            before = _copy(settings["database_url"], Path(folder) / "before")
            _call(
                "pg_restore",
                settings["database_url"],
                "--clean",
                "--if-exists",
                "--no-owner",
                "--single-transaction",
                str(dump),
            )
        else:
            before = None
            with contextlib.closing(sqlite3.connect(fresh / _SQLITE)) as database:
                _check(database, frm)
        (fresh / "settings.json").write_text(json.dumps(settings | place))
        previous = home.with_name(f"{home.name}.before-restore")
        if home.exists():
            shutil.rmtree(previous, ignore_errors=True)
            home.rename(previous)
        if before is not None:
            previous.mkdir(mode=0o700, exist_ok=True)
            before.rename(previous / _POSTGRESQL)
        fresh.rename(home)
    return home


def _copy(database_url: str, folder: Path) -> Path:
    """The database as one file in this folder."""
    folder.mkdir(exist_ok=True)
    if not database_url.startswith("sqlite"):
        _call("pg_dump", database_url, "--format=custom", f"--file={folder / _POSTGRESQL}")
        return folder / _POSTGRESQL
    database = Path(database_url.split("://", 1)[1].removeprefix("/").split("?")[0])
    with (
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as source,
        contextlib.closing(sqlite3.connect(folder / _SQLITE)) as target,
    ):
        source.backup(target)
        _check(target, folder / _SQLITE)
    return folder / _SQLITE


def _call(program: str, database_url: str, *arguments: str) -> None:
    """A program of PostgreSQL on this database. The address goes by the environment: a command line is no secret."""
    url = urlsplit(database_url)
    database = url.path.lstrip("/")
    login = {
        "PGHOST": url.hostname, "PGPORT": url.port, "PGDATABASE": database,
        "PGUSER": unquote(url.username or ""), "PGPASSWORD": unquote(url.password or ""),
    }  # fmt: skip
    environment = {**os.environ, **{name: str(value) for name, value in login.items() if value}}
    command = [program, *(["--dbname", database] if program == "pg_restore" else []), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"This Argilla keeps its data in PostgreSQL: {program} is needed, and is not on PATH."
        ) from error
    if done.returncode:
        raise UserError(f"{program} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def _check(database: sqlite3.Connection, path: Path) -> None:
    try:
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise UserError(f"The database in {path} is damaged: {verdict}.")
