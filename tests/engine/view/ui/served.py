"""`flywheel ui`, started as people start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-c", "from flywheel.commandline import main; main()"]


@contextmanager
def served(store: Path | str) -> Generator[tuple[str, str]]:
    """The link that it prints, and the address without token."""
    process = subprocess.Popen(
        [*COMMAND, "ui", "--store", str(store), "--no-open"], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert process.stdout
        link = process.stdout.readline().strip()
        assert link.startswith("http://127.0.0.1:"), link
        yield link, link.partition("/?")[0]
    finally:
        process.terminate()
        process.wait(30)
