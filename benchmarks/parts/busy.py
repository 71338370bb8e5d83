"""What other work on the machine costs a stage: its wall and CPU time alone, and beside six busy processes.

    python -m benchmarks.parts.busy

A policy of the quickstart's size learns from as many pairs, by `flywheel run`, from the start of the command to its end. Where n
processes want to run on c cores each gets c / n of one, so that with six others a stage whose two threads work all the time takes
(2 + 6) / 2 = 4 times as long on two cores. What it takes beyond that are threads that wait for each other, and its CPU time says
whether they spin meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import flywheel
from engine.execution.threads import cores
from engine.store.artifact import Artifact
from tests.training import tiny_chat

BUSY = 6
BAR = 5.0  # times as long as alone
PAIRS = 400
RECIPE = """\
name: busy
seed: 7
stages:
  dpo: {kind: dpo, from: {policy: ./policy, preferences: ./pairs.jsonl}, epochs: 2, lr: 1.0e-4}
"""


@contextmanager
def beside(count: int) -> Generator[None]:
    """Within this, so many processes each want a core all the time."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def prepare(folder: Path) -> Path:
    """A recipe with the quickstart's `dpo`, and what it takes: a policy of that size, with weights that nobody trained."""
    tiny_chat.save(folder / "policy", vocabulary=2048, hidden=160, layers=4)
    words = tiny_chat.WORDS.split()
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(PAIRS):
            said = [" ".join(words[(number * step + place) % len(words)] for place in range(16)) for step in (1, 3, 7)]
            print(json.dumps(dict(zip(("prompt", "chosen", "rejected"), said, strict=True))), file=file)
    recipe = folder / "busy.yaml"
    recipe.write_text(RECIPE)
    return recipe


def timed(recipe: Path, store: Path) -> tuple[float, float, Artifact]:
    """Wall and CPU seconds of a run, and what it made."""
    started = monotonic()
    made = flywheel.run(recipe, store=str(store))["dpo"]
    return monotonic() - started, made.manifest["timings"]["cpu_s"], made


def busy() -> dict[str, Any]:
    """Seconds alone and beside others, their ratio, and whether the weights are the same to the bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = prepare(folder)
        quiet_s, quiet_cpu_s, alone = timed(recipe, folder / "alone")
        with beside(BUSY):
            busy_s, busy_cpu_s, together = timed(recipe, folder / "together")
        return {
            "cores": cores(), "busy_processes": BUSY, "quiet_s": round(quiet_s, 1), "busy_s": round(busy_s, 1),
            "quiet_cpu_s": quiet_cpu_s, "busy_cpu_s": busy_cpu_s, "ratio": round(busy_s / quiet_s, 2), "bar": BAR,
            "same_bytes": alone.digest == together.digest,
        }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(busy(), indent=1))
