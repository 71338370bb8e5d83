"""Kernels are compiled ahead of time: no work loads the compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOM = Path(__file__).parents[3] / "pipelines"


def loaded(*modules: str) -> set[str]:
    """The packages that a process has loaded which imports these modules."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOM.parent)
    return set(run.stdout.split())


def test_work_is_done_without_numba_once_kernels_are_compiled() -> None:
    works = [f"pipelines.{file.parent.name}.work" for file in ROOM.glob("*/work.py") if file.parent.name != "tokenize"]
    assert len(works) == 6
    # `tokenize` is its kernels' callers alone: the rest of it imports transformers, which takes seconds.
    assert not loaded(*works, "pipelines.tokenize.pretokens", "pipelines.tokenize.packing") & {"numba", "llvmlite"}
