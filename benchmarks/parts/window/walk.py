"""A real browser walks `flywheel ui` over the finished quickstart and a live run beside it: checks, and five people's questions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim
from benchmarks.parts.window import finished, live, questions
from benchmarks.parts.window.scene import RUN, Scene, checks
from engine.store.store import Store
from tests.chromium import chromium, missing
from tests.engine.view.ui.served import served
from tests.engine.view.ui.walk import Walk

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / f"{RUN}.yaml"
FLYWHEEL = [sys.executable, "-c", "from engine.cli import main; main()"]


def walked(folder: Path, told: dict[str, Any], pictures: Path | None = None) -> list[Claim]:
    """All claims, on a store in this folder, which may hold a finished quickstart already.

    Args:
        told: the seconds of the quickstart, where it had to run, are noted here.
        pictures: a folder for screenshots.
    """
    if lacking := missing():
        raise SystemExit(lacking)
    store = folder / "store"
    quickstart(folder, store, told)
    began = time.monotonic()
    with served(store) as (link, home), chromium() as chrome:
        scene = Scene(Walk(chrome, link, home), link, store, RECIPE, pictures)
        claims = [check.claim(scene) for check in checks(vars(finished))]
        claims += [check.claim(scene) for check in checks(vars(questions))]
        with live.run(scene, folder / "live"):
            claims += [check.claim(scene) for check in checks(vars(live))]
    told["walk_s"] = round(time.monotonic() - began, 1)
    asked = {f"window.{check.name}" for check in checks(vars(questions))}
    told["checks"] = sum(one["id"] not in asked for one in claims)
    told["questions"] = len(asked)
    return claims


def quickstart(folder: Path, store: Path, told: dict[str, Any]) -> None:
    """Run the recipe with an Argilla of its own, unless its results are there."""
    record = Store(str(store)).run(RUN) or {}
    if "results" in record.get("stages", {}):
        return
    environment = {**os.environ, "FLYWHEEL_HOME": str(folder / "home")}
    began = time.monotonic()
    try:
        command = [*FLYWHEEL, "run", str(RECIPE), "--store", str(store)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the quickstart ended with {done.returncode}:\n{done.stderr[-3000:]}")
    finally:
        subprocess.run([*FLYWHEEL, "argilla", "down"], cwd=ROOT, env=environment, capture_output=True)
    told["quickstart_s"] = round(time.monotonic() - began, 1)
