"""Passwords of annotators whose accounts Flywheel makes, in a file of their own."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from engine.store.whole_file import whole_file


def flywheel_home() -> Path:
    """Where Flywheel keeps what it installs and serves: `FLYWHEEL_HOME`, or the user's data folder."""
    named = os.environ.get("FLYWHEEL_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".local" / "share" / "flywheel"


def passwords(path: Path, missing: Sequence[str]) -> dict[str, str]:
    """All known passwords, with new ones for `missing`, kept (mode 0600) before they are used, so that none is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(f".{path.name}.lock")
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        fresh = {name: secrets.token_urlsafe(12) for name in missing if name not in known}
        if fresh:
            with whole_file(path, private=True) as partial:
                partial.write_text(json.dumps(known | fresh, indent=1))
    return known | fresh
