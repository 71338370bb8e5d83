"""Runs one stage in a process of its own and kills it, for real, at a given step or commit.

The processes are forked from one that has imported torch, transformers and TRL (and vLLM, once a stage wants it) and done
nothing else, so that ten kills cost ten times the work and one time the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.backends.vllm.options import ENVIRONMENT
from tests.training import tiny_chat

IMPORTED = ["torch", "transformers", "peft", "trl", "trl.trainer.sft_trainer", "training.pretrain.work", "training.sft.work",
            "training.reward.fit", "training.preference.dpo", "training.preference.kto", "training.rl.ppo.loop", "training.loops.trl"]  # fmt: skip
VLLM = ["vllm.entrypoints.llm"]
_forked_from: tuple[int | None, set[str]] = (None, set())  # a process, and what it has imported


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
    """Do it in a new process. None if that was killed, as asked.

    Args:
        spec: `{"store", "stage": "module:Class", "config", "inputs": {port: {label: [kind, folder]}}}`. A kind of ""
            means a folder of the store. With `"imports": VLLM` where the stage starts an engine in its process.
        folder: for what the process says.
        kill_at: the step or commit (from 1) after which it is killed.
    """
    context = ready(spec.get("imports", []))
    told, made = folder / "process.log", folder / "made"
    process = context.Process(target=_child, args=({**spec, "kill_at": kill_at}, str(told), str(made)))
    process.start()
    process.join(300)
    if kill_at is not None:
        assert process.exitcode == -signal.SIGKILL, told.read_text()[-3000:]
        return None
    assert process.exitcode == 0, told.read_text()[-3000:]
    return Store(spec["store"]).get(made.read_text())


def ready(more: list[str] | None = None) -> ForkServerContext:
    """Start the process to fork from, unless there is one that has imported all of this."""
    global _forked_from
    context, imports = multiprocessing.get_context("forkserver"), [*IMPORTED, *(more or [])]
    server: Any = forkserver._forkserver  # pyright: ignore
    there, known = _forked_from
    if there == server._forkserver_pid and there is not None and known >= set(imports):
        return context
    for name, value in {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}.items():
        os.environ.setdefault(name, value)
    server._stop()
    context.set_forkserver_preload([*imports, "tests.training.warmed"])
    forkserver.ensure_running()
    _forked_from = (server._forkserver_pid, set(imports))
    return context


def share_forkserver() -> None:
    """In a process that was forked so: fork others from the same one, which has imported everything, too. multiprocessing would start another,
    though it is said to do nothing (`ForkServer.ensure_running`)."""
    server: Any = forkserver._forkserver  # pyright: ignore
    server.ensure_running = resource_tracker.ensure_running


def _child(spec: dict[str, Any], told: str, made: str) -> None:
    with Path(told).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    share_forkserver()
    import torch

    torch.set_num_threads(1)
    Path(made).write_text(run(spec).id)
    sys.stdout.flush()
    os._exit(0)


def another_store(store: Store, made: Artifact, folder: Path) -> str:
    """An empty store that holds one artifact of this one: what an uninterrupted run starts from."""
    other = folder / "another-store"
    (other / "artifacts").mkdir(parents=True)
    link(made, str(other))
    return str(other)


def link(made: Artifact, other: str) -> None:
    """Put an artifact into another store as well."""
    place = Path(made.store.path("artifacts", made.id)).resolve()
    (Path(other) / "artifacts" / made.id).symlink_to(place)
