"""A configuration, and the help of a command, are cheap to import: what does the work is not loaded with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Of what does the work in this room. (The help has typer, the configurations pydantic.)
WORK = {
    "numpy",
    "pyarrow",
    "polars",
    "httpx",
    "argilla",
    "datasets",
    "torch",
    "labeling.argilla.client",
    "labeling.utilities",
}
STAGES = "labeling.ask.stage, labeling.label.stage, labeling.preferences.stage, labeling.preferences.ai_feedback_stage"
HELP = "from labeling.argilla.commands import app; app(['--help'], standalone_mode=False)"


@pytest.mark.parametrize("code", [f"import {STAGES}", HELP])
def test_it_loads_no_library_that_works(code: str) -> None:
    program = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not WORK & set(done.stdout.splitlines())
