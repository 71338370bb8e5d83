"""Runs one stage in a process of its own and kills it, for real, at a given step or commit.

`python -m tests.training.killed SPEC.json`: `{"store", "stage": "module:Class", "config", "inputs": {port: {label: [kind, folder]}},
"kill_at": step, commit (from 1) or null}`. A kind of "" means a folder of the store.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.store import Artifact, Store
from engine.worker import carry_out
from tests.training import tiny_chat


def run(spec: dict[str, Any]) -> Artifact:
    """Carry out the stage in this process."""
    store = Store(spec["store"])
    inputs: dict[str, dict[str, Artifact]] = {}
    for port, given in spec["inputs"].items():
        inputs[port] = {}
        for label, (kind, folder) in given.items():
            found = tiny_chat.artifact(store, Path(folder), kind) if kind else store.get(folder)
            assert found is not None, folder
            inputs[port][label] = found

    commits = 0

    def emit(event: dict[str, Any]) -> None:
        nonlocal commits
        commits += event["event"] == "commit"
        reached = event.get("step") if event["event"] == "metric" else commits if event["event"] == "commit" else None
        if reached is not None and reached == spec["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    module, name = spec["stage"].split(":")
    stage = getattr(import_module(module), name)(**spec["config"])
    return carry_out(store, name.lower(), stage, inputs, emit=emit)


def start(spec: dict[str, Any], folder: Path, kill_at: int | None) -> Artifact | None:
    """Do it in a new process. None if that was killed, as asked."""
    file = folder / "spec.json"
    file.write_text(json.dumps({**spec, "kill_at": kill_at}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if kill_at is not None:
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return Store(spec["store"]).get(done.stdout.split()[-1])


def another_store(store: Store, made: Artifact, folder: Path) -> str:
    """An empty store that holds one artifact of this one: what an uninterrupted run starts from."""
    other = folder / "another-store"
    (other / "artifacts").mkdir(parents=True)
    (other / "artifacts" / made.id).symlink_to(Path(store.path("artifacts", made.id)).resolve())
    return str(other)


if __name__ == "__main__":
    made = run(json.loads(Path(sys.argv[1]).read_text()))
    print(made.id)
    sys.stdout.flush()
    os._exit(0)
