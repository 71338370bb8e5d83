"""Inject faults into every stage kind and count what came of them.

    python -m tests.faults --json [--keep FOLDER] [--seed 7] [--families deaths,bits] [--stages chats,sft] [--jobs 2]

Prints a table, and one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.faults import two_writers
from tests.faults.ground import Ground
from tests.faults.outcome import Outcome, table
from tests.faults.schedule import FAMILIES, WRITERS

Fault = Callable[[], Outcome]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line (always printed)")
    parser.add_argument("--keep", type=Path, help="keep the filled store here, and use it if it is there")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--stages", default="", help="only these stages of the recipe")
    parser.add_argument("--jobs", type=int, default=2, help="faults at once")
    parser.add_argument(
        "--minutes", type=float, default=0, help="begin no more faults of a family after so long; 0: all"
    )
    args = parser.parse_args()
    only = args.stages.split(",") if args.stages else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with Ground(folder).open(only) as ground:
            outcomes = inject(ground, args.families.split(","), args.seed, args.jobs, args.minutes)
    for line in table(outcomes):
        print(f"{line['fault']:<44} {line['times']:>5} on {line['struck']:>3}   {line['came']}", file=sys.stderr)
    injected = [one for one in outcomes if one.came != "unhurt"]
    bad = [one for one in injected if not one.good]

    def count(*came: str) -> int:
        return sum(one.came in came for one in injected)

    claims = [
        ("faults injected", len(injected), ">= 400", len(injected) >= 400),
        ("stage kinds struck by a kill", len({o.struck for o in injected if o.fault.startswith("kill -9 of the w")}), ">= 28", None),
        ("rows lost, doubled or silently wrong", count("wrong", "silent"), "== 0", count("wrong", "silent") == 0),
        ("tracebacks", count("traceback"), "== 0", count("traceback") == 0),
        ("orphans", count("orphan"), "== 0", count("orphan") == 0),
        ("left over in tmp or work", count("leftover"), "== 0", count("leftover") == 0),
    ]  # fmt: skip
    if writers := [one for one in injected if one.fault == two_writers.FAULT]:
        right = sum(one.good for one in writers)
        claims.append((f"rounds of two writers on S3, of {WRITERS}", right, f"== {WRITERS}", right == WRITERS))
    told = {
        "benchmark": "faults",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "seed": args.seed,
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "table": table(outcomes),
        "bad": [{"fault": o.fault, "struck": o.struck, "came": o.came, "detail": o.detail[-600:]} for o in bad],
        "claims": [{"id": i, "value": v, "bar": b, "holds": v >= 28 if h is None else h} for i, v, b, h in claims],
    }
    print(json.dumps(told))
    return bool(bad)


def inject(ground: Ground, families: list[str], seed: int, jobs: int, minutes: float = 0) -> list[Outcome]:
    """Try every fault of these families, several at once; what goes wrong in the trying itself is told as wrong."""
    outcomes: list[Outcome] = []
    started = 0.0

    def tried(fault: Fault, name: str) -> Outcome | None:
        if minutes and time.monotonic() - started > 60 * minutes:
            return None
        try:
            return fault()
        except Exception as error:
            return Outcome(name, "the trial itself", "wrong", f"{type(error).__name__}: {error}")

    for family in families:
        alone, faults = FAMILIES[family]
        planned, started = faults(ground, seed), time.monotonic()
        with ThreadPoolExecutor(1 if alone else jobs) as pool:
            futures = [pool.submit(tried, fault, family) for fault in planned]
            for done, future in enumerate(as_completed(futures), 1):
                if (outcome := future.result()) is None:
                    continue
                outcomes.append(outcome)
                mark = "." if outcome.good else "-" if outcome.came == "unhurt" else "!"
                print(
                    f"{family} {done}/{len(planned)} {mark} {outcome.fault} on {outcome.struck}: {outcome.came}",
                    file=sys.stderr,
                    flush=True,
                )
                if mark == "!":
                    print(outcome.detail[-1500:], file=sys.stderr, flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
