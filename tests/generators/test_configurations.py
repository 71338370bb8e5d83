"""What recipes say is read without what carries it out."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

HEAVY = (
    "torch",
    "vllm",
    "transformers",
    "peft",
    "polars",
    "pyarrow",
    "jinja2",
    "jsonschema",
    "openai",
    "httpx",
    "bm25s",
)
SETTINGS = ("generators.backends.protocol", "generators.backends.server.settings", "generators.rules.sandbox")


def test_configurations_load_no_heavy_library() -> None:
    stages = {entry.module for entry in entry_points(group="flywheel.stages") if entry.module.startswith("generators.")}
    assert len(stages) == 7
    program = "import importlib, json, sys\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in (*SETTINGS, *sorted(stages))
    )
    look = program + f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-P", "-c", look], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
