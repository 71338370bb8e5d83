"""The quickstart with its stages one after the other, and side by side: wall times, and whether the bytes are the same.

python -m benchmarks.parts.side_by_side --json              # both, on stores of their own: some twelve minutes on an idle machine
python -m benchmarks.parts.side_by_side --of STORE          # what the schedule promises, from a finished run's own timings
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.execution.machine import Machine, this_machine
from engine.execution.scheduling import Schedule, footprint_of
from engine.plan.plan import make_plan
from engine.plan.recipe import load_recipe
from engine.store.artifact import Artifact
from engine.store.store import Store

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
START_S = 0.8  # of a stage's process, before the work's own clock starts: measured over the quickstart's 23 stages on two cores


def quickstart(folder: Path | None = None) -> dict[str, Any]:
    """`flywheel run recipes/quickstart.yaml` with `--jobs 1` and without, each on a fresh store.

    Args:
        folder: where the stores are made, and stay; else they go.

    Returns:
        `before_s`, `after_s`, their `ratio`, `same_digests`, CPU seconds of both, and how busy the machine was before each.
    """
    where = folder or Path(tempfile.mkdtemp(prefix="side-by-side-"))
    try:
        before, after = (_run(where / name, jobs) for name, jobs in (("before", ("--jobs", "1")), ("after", ())))
        return {
            "before_s": before["wall_s"],
            "after_s": after["wall_s"],
            "ratio": round(after["wall_s"] / before["wall_s"], 3),
            "same_digests": bool(before["digests"]) and before["digests"] == after["digests"],
            "cpu_s": [before["cpu_s"], after["cpu_s"]],
            "load": [before["load"], after["load"]],
            "stages": len(after["digests"]),
        }
    finally:
        if folder is None:
            shutil.rmtree(where, ignore_errors=True)


def _run(store: Path, options: tuple[str, ...]) -> dict[str, Any]:
    load, spent, started = os.getloadavg()[0], os.times(), time.monotonic()
    command = [sys.executable, "-c", "from engine.cli import main; main()", "run", str(RECIPE), "--store", str(store)]
    subprocess.run([*command, *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    wall, now = time.monotonic() - started, os.times()
    cpu = now.children_user - spent.children_user + now.children_system - spent.children_system
    digests = {artifact.id: artifact.digest for artifact in Store(str(store)).artifacts()}
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "load": round(load, 2), "digests": digests}


def promised(store: Store, machine: Machine, jobs: int | None = None) -> dict[str, Any]:
    """What the schedule makes of a finished quickstart, by the seconds that its stages took one after the other.

    Where more is asked of the cores than there are, all that run are slower by as much. What is imported ahead is not counted: this is an
    upper bound.

    Returns:
        `wall_s`, and by stage when it begins and ends.
    """
    schedule = Schedule(make_plan(load_recipe(RECIPE), store, device=machine.device), machine, jobs)
    made: dict[str, Artifact] = {s.name: a for s in schedule.plan if (a := store.get(s.folder))}
    left = {name: START_S + a.manifest["timings"]["wall_s"] for name, a in made.items()}
    cores = {name: a.manifest["timings"]["cpu_s"] / a.manifest["timings"]["wall_s"] for name, a in made.items()}
    done: dict[str, Artifact] = {}
    begins: dict[str, float] = {}
    ends: dict[str, float] = {}
    now = 0.0
    while len(done) < len(schedule.plan):
        ready = [(s, footprint_of(s, done, store, machine)) for s in schedule.ready(done)]
        while chosen := schedule.choose(ready):
            schedule.begin(*chosen)
            ready.remove(chosen)
            begins[chosen[0].name] = now
        asked = sum(min(cores[name], machine.cores) for name in schedule.running)
        slower = max(1.0, asked / machine.cores)
        first = min(schedule.running, key=left.__getitem__)
        passed = left[first]
        for name in schedule.running:
            left[name] -= passed
        now += passed * slower
        del schedule.running[first]
        done[first], ends[first] = made[first], now
    return {"wall_s": round(now, 1), "stages": {n: [round(begins[n], 1), round(ends[n], 1)] for n in begins}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--of", metavar="STORE", help="of a finished quickstart: tell what the schedule promises")
    parser.add_argument("--json", action="store_true", help="one line")
    asked = parser.parse_args()
    if asked.of:
        before, after = (promised(Store(asked.of), this_machine(), jobs) for jobs in (1, None))
        told = {
            "before_s": before["wall_s"],
            "after_s": after["wall_s"],
            "ratio": after["wall_s"] / before["wall_s"],
            **after,
        }
    else:
        told = quickstart()
    print(json.dumps(told, indent=None if asked.json else 1))


if __name__ == "__main__":
    main()
