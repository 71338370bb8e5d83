"""What this machine has for stages: cores, memory, a device for models."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engine.execution.threads import cores, groups
from engine.stage.stage import Device


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        memory: bytes.
    """

    cores: int
    memory: int
    device: Device


def this_machine() -> Machine:
    return Machine(cores(), memory(), device())


def device() -> Device:
    """The first GPU, or this machine where there is none. Imports no torch."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
        asked = subprocess.run(command, capture_output=True, text=True)
        if asked.returncode == 0 and asked.stdout.strip():
            mebibytes, name = asked.stdout.splitlines()[0].split(", ", 1)
            return Device(name, int(mebibytes) << 20, gpu=True)
    return Device("this machine, which has no GPU", _physical(), gpu=False)


def memory(root: Path = Path("/")) -> int:
    """Bytes that this process's cgroups and all above them allow, and no more than there are.

    Version 2 says `memory.max` ("1073741824", or "max"), version 1 `memory.limit_in_bytes` (a huge number where there is no limit).

    Args:
        root: where /proc and /sys are.
    """
    least = _physical()
    for folder in groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                told = (folder / name).read_text().strip()
                least = min(least, int(told)) if told != "max" else least
            except (OSError, ValueError):  # this one limits no memory
                continue
    return least


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
