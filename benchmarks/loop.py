"""The quickstart, judged: its table, what a second run costs, and twenty kills at moments of its work.

    python -m benchmarks.loop --json [--kills 20] [--keep FOLDER]

Runs the recipe twice from nothing, each with a store and an Argilla of its own: once undisturbed, once with `kill -9` of the
whole process group at moments drawn (seeded) over what the first one did, each time continued. Prints one JSON object with a
claim a line of proof.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.moments import Moment, Moments
from engine.store.store import Store

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
FLYWHEEL = [sys.executable, "-c", "from engine.cli import main; main()"]


def environment(folder: Path, argilla_home: Path) -> dict[str, str]:
    return {**os.environ, "FLYWHEEL_STORE": str(folder / "store"), "FLYWHEEL_HOME": str(argilla_home)}


def timed(env: dict[str, str], *arguments: str) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run([*FLYWHEEL, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"flywheel {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return time.monotonic() - started, done.stdout


def stormy(moments: Moments, env: dict[str, str], drawn: list[Moment]) -> list[float]:
    """Run to the end, killed at each of these moments on the way; the seconds each attempt lived."""
    lived: list[float] = []
    for moment in [*drawn, None]:
        moments.arm(moment)
        started = time.monotonic()
        done = subprocess.run(
            [*FLYWHEEL, "run", str(RECIPE)],
            env={**env, **moments.environment}, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lived.append(round(time.monotonic() - started, 1))
        print(f"attempt {len(lived)}: {lived[-1]} s, exit code {done.returncode}", file=sys.stderr, flush=True)
        if done.returncode != (-signal.SIGKILL if moment else 0):
            raise SystemExit(f"a continued run failed:\n{done.stderr}")
    return lived


def digests(folder: Path) -> dict[str, str]:
    return {a.id: a.digest for a in Store(str(folder / "store")).artifacts()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line (always done)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep the stores here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        calm, storm = folder / "calm", folder / "storm"
        env = environment(calm, folder / "calm-home")
        try:
            calm_moments = Moments(folder / "calm-moments", calm / "store")
            run_s, _ = timed({**env, **calm_moments.environment}, "run", str(RECIPE))
            again_s, _ = timed(env, "run", str(RECIPE))
            table: dict[str, dict[str, Any]] = json.loads(timed(env, "report", "quickstart", "--json")[1])
        finally:
            timed(env, "argilla", "down")
        help_s = min(timed(env, "--help")[0] for _ in range(5))
        lived: list[float] = []
        storm_moments = Moments(folder / "storm-moments", storm / "store")
        if args.kills:
            env = environment(storm, folder / "storm-home")
            try:
                lived = stormy(storm_moments, env, calm_moments.draw(args.kills, args.seed))
            finally:
                timed(env, "argilla", "down")
        same = digests(calm) == digests(storm) if args.kills else None
        bars: list[tuple[str, Any, str, bool]] = [
            ("base answers", table["base"]["answers"], "<= 0.05", table["base"]["answers"] <= 0.05),
            ("sft answers", table["sft"]["answers"], ">= 0.95", table["sft"]["answers"] >= 0.95),
            ("sft held-out accuracy", table["sft"]["accuracy"], ">= 0.70", table["sft"]["accuracy"] >= 0.70),
            *(
                (f"{m} gold win rate, low", table[m]["gold_win_rate_low"], "> 0.5", table[m]["gold_win_rate_low"] > 0.5)
                for m in ("dpo", "ppo")
            ),
            ("second run, s", round(again_s, 2), "< 5", again_s < 5),
            ("--help, s", round(help_s, 3), "< 0.3", help_s < 0.3),
        ]
        if args.kills:
            killed = storm_moments.kills
            bars.append((f"same digests after {killed} kills", same, "true", bool(same) and killed == args.kills))
        result = {
            "benchmark": "loop",
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
            "run_s": round(run_s, 1),
            "run_cpu_s": round(
                sum(getattr(resource.getrusage(resource.RUSAGE_CHILDREN), f) for f in ("ru_utime", "ru_stime")), 1
            ),
            "table": table,
            "attempts_s": lived,
            "claims": [{"id": i, "value": v, "bar": b, "holds": h} for i, v, b, h in bars],
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
