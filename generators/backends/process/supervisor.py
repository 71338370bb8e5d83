"""A command with processes of its own that all go when our process goes: `python -P -m ... PARENT COMMAND`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from generators.backends.process.spawn import die_with_parent


def supervise(parent: int, command: list[str]) -> int:
    """Run the command, and end its whole process group when the parent is gone, even by SIGKILL."""

    def end(*_: object) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    die_with_parent(parent, signal.SIGTERM)
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
