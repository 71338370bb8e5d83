"""Files of other programs, brought in by a room that engine doesn't know: the entry points `flywheel.importers`.

An importer's name is what its files begin with, whatever they are called (`GGUF`). It is called as `read(file, folder)`, in a
process of its own, writes the artifact's files into the folder, and returns facts about them: the `kind` of artifact, and what
else is worth keeping (`name`, `license`, `quantization`, ...).
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engine.errors import UserError

LONGEST = 32  # bytes of a name, at most


def importer_of(file: Path) -> str | None:
    """Which importer takes a file, as `module:function`, told by its first bytes; None where none does."""
    with file.open("rb") as opened:
        head = opened.read(LONGEST)
    table = entry_points(group="flywheel.importers")
    return next((entry.value for entry in table if head.startswith(entry.name.encode())), None)


def bring_in(importer: str, file: Path, folder: Path) -> dict[str, Any]:
    """Have an importer write what is in a file into a folder. Returns its facts.

    Raises:
        UserError: the file can't be read by it, or its process died.
    """
    with TemporaryDirectory() as temporary:
        told = Path(temporary) / "facts.json"
        command = [sys.executable, "-P", "-m", __name__, importer, str(file), str(folder), str(told)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        facts: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
    if "error" in facts:
        raise UserError(facts["error"])
    if done.returncode or not facts:
        tail = "\n".join("  " + line for line in done.stderr.splitlines()[-15:])
        raise UserError(f"{file} can't be brought in: {importer} ended with code {done.returncode}.\n{tail}")
    return facts


def main(importer: str, file: str, folder: str, told: str) -> None:
    """What the process does: the facts, or our own words about what is wrong, go into a file."""
    module, _, function = importer.partition(":")
    try:
        facts: dict[str, Any] = getattr(import_module(module), function)(Path(file), Path(folder))
    except UserError as error:
        facts = {"error": str(error)}
    Path(told).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
