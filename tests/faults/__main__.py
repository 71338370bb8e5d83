"""Inject faults into every stage kind and count what came of them.

    python -m tests.faults --json [--keep FOLDER] [--seed 7] [--families deaths,bits] [--stages chats,sft] [--jobs 2]

Prints a table, and one JSON object as its last line. What was tried is noted in FOLDER/tried.jsonl: killed, or out of time, it goes on
there when it is started again, and the table is of all. Remove that file once the code is another.
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
from dataclasses import asdict
from pathlib import Path

from tests.faults import two_writers
from tests.faults.ground import Ground
from tests.faults.outcome import Outcome, table
from tests.faults.schedule import FAMILIES, WRITERS, name_of

Fault = Callable[[], Outcome]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line (always printed)")
    parser.add_argument("--keep", type=Path, help="keep the filled store and what was tried here, and go on from there")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--stages", default="", help="only these stages of the recipe")
    parser.add_argument("--jobs", type=int, default=2, help="faults at once")
    parser.add_argument(
        "--minutes", type=float, default=0, help="begin no more after so long, of which each family has a share; 0: all"
    )
    args = parser.parse_args()
    only = args.stages.split(",") if args.stages else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with Ground(folder).open(only) as ground:
            tried = Tried(folder / "tried.jsonl")
            inject(ground, args.families.split(","), args.seed, args.jobs, args.minutes, tried)
    outcomes = list(tried.outcomes.values())
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


class Tried:
    """What was tried, and what came of it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        told = {one["tried"]: Outcome(**one["outcome"]) for one in map(json.loads, lines)}
        self.outcomes = {name: outcome for name, outcome in told.items() if outcome.came != "unhurt"}

    def note(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        with self.file.open("a") as file:
            file.write(json.dumps({"tried": name, "outcome": asdict(outcome)}) + "\n")


def inject(ground: Ground, families: list[str], seed: int, jobs: int, minutes: float, tried: Tried) -> None:
    """Try every fault of these families, several at once; what goes wrong in the trying itself is told as wrong."""
    started, until = time.monotonic(), 0.0

    def attempt(fault: Fault, name: str) -> Outcome | None:
        if minutes and time.monotonic() - started > 60 * minutes * until:
            return None
        try:
            return fault()
        except Exception as error:
            return Outcome(name, "the trial itself", "wrong", f"{type(error).__name__}: {error}")

    for family in families:
        alone, share, faults = FAMILIES[family]
        until += share / sum(FAMILIES[name][1] for name in families)
        planned = {f"{family} {name_of(fault, number)}": fault for number, fault in enumerate(faults(ground, seed))}
        left = {name: fault for name, fault in planned.items() if name not in tried.outcomes}
        with ThreadPoolExecutor(1 if alone else jobs) as pool:
            futures = {pool.submit(attempt, fault, family): name for name, fault in left.items()}
            for done, future in enumerate(as_completed(futures), 1 + len(planned) - len(left)):
                if (outcome := future.result()) is None:
                    continue
                tried.note(futures[future], outcome)
                mark = "." if outcome.good else "-" if outcome.came == "unhurt" else "!"
                print(
                    f"{family} {done}/{len(planned)} {mark} {outcome.fault} on {outcome.struck}: {outcome.came}",
                    file=sys.stderr,
                    flush=True,
                )
                if mark == "!":
                    print(outcome.detail[-1500:], file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
