"""One file that holds a local Argilla: its database, credentials and signing key."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from engine.errors import UserError
from labeling.server import local

_KEPT = ("settings.json", "owner.password", "owner.apikey", "annotators.json", "last_port")


def backup(home: Path | None, to: Path) -> Path:
    """Write the server of `home` to the file `to` (a tar, mode 0600: it holds credentials). Works while it
    runs.

    The copy of the database is of one instant (SQLite's online backup), checked before the file appears.
    Raises UserError when there is no server in `home`, or its data is in PostgreSQL, which has tools of its
    own.
    """
    home = local.resolve(home)
    to = Path(to).absolute()
    if not (home / "settings.json").exists():
        raise UserError(f"There is no Argilla server in {home}: nothing to back up.")
    database = _sqlite_file(local.read_settings(home)["database_url"], "back up")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".argilla-backup-") as folder:
        copy = Path(folder) / "argilla.db"
        with (
            contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            _check(target, copy)
        aside = Path(folder) / "backup.tar"
        with (
            os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            tar.add(copy, "argilla.db")
            for name in _KEPT:
                if (home / name).exists():
                    tar.add(home / name, name)
        aside.replace(to)
    return to


def restore(home: Path | None, frm: Path) -> Path:
    """Put a backup in place of the server of `home`, which must be stopped. What was there is kept beside it.

    Returns `home`. Raises UserError when the server runs, or `frm` is not a backup.
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
                if not {"argilla.db", "settings.json"} <= names <= {"argilla.db", *_KEPT}:
                    raise UserError(f"{frm} is not a backup of an Argilla server: it holds {sorted(names)[:5]}.")
                tar.extractall(fresh, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{frm} can't be read as a backup: {error}.") from error
        for path in fresh.iterdir():
            path.chmod(0o600)
        with contextlib.closing(sqlite3.connect(fresh / "argilla.db")) as database:
            _check(database, frm)
        settings = json.loads((fresh / "settings.json").read_text())
        settings |= local.settings_of_place(home)  # the backup may come from another folder
        (fresh / "settings.json").write_text(json.dumps(settings))
        if home.exists():
            shutil.rmtree(previous := home.with_name(f"{home.name}.before-restore"), ignore_errors=True)
            home.rename(previous)
        fresh.rename(home)
    return home


def _sqlite_file(database_url: str, action: str) -> Path:
    if not database_url.startswith("sqlite"):
        raise UserError(
            f"This Argilla keeps its data in PostgreSQL: {action} it with pg_dump and pg_restore."
            " The credentials are in its home folder."
        )
    return Path(database_url.split("://", 1)[1].removeprefix("/").split("?")[0])


def _check(database: sqlite3.Connection, path: Path) -> None:
    try:
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise UserError(f"The database in {path} is damaged: {verdict}.")
