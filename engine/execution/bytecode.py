"""Modules that a run compiles once, where the environment forbids to keep them beside their sources.

Containers like to set `PYTHONDONTWRITEBYTECODE`. Then each process compiles what it imports anew, and a stage that imports torch, TRL or vLLM
is a process of its own: some ten CPU seconds each. What its stages import a run keeps in a folder that goes with it.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager

ROOM = 1 << 30  # Python keeps what fits of a module on a full disk, and fails on it from then on


@contextmanager
def bytecode() -> Generator[dict[str, str]]:
    """Variables for the processes of a run; none where modules are kept anyway, or there is no room for them."""
    if not os.environ.get("PYTHONDONTWRITEBYTECODE") or os.environ.get("PYTHONPYCACHEPREFIX") or not _room():
        yield {}
        return
    folder = tempfile.mkdtemp(prefix="flywheel-bytecode-")
    try:
        yield {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _room() -> bool:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, -1)
    return unlimited and shutil.disk_usage(tempfile.gettempdir()).free > ROOM
