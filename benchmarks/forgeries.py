"""Attempts to forge a passing grade and to leave the sandbox, counted. One JSON object, the last line.

    python -m benchmarks.forgeries --json

Each trick of `parts/forgeries_to_try.py` is tried against tests of six kinds; each escape of `parts/escapes_to_try.py` as a program,
and as the tests of one, since models write both. What counts is what became of the world outside, and what programs print.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from functools import partial
from typing import Any

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.escapes_to_try import escapes, settled, world
from benchmarks.parts.forgeries_to_try import RIGHT, TESTS, forgeries
from generators.rules.sandbox.programs import Limits, bubblewrap, grade, missing, run, together

LIMITS = Limits(cpu_s=1, wall_s=3, memory_mb=256)
SPEED = 100


def forged() -> tuple[Counter[str], list[str]]:
    """How many forgeries were tried, by family, and those that passed."""
    attempts = forgeries()
    outcomes = together([partial(grade, program, tests, LIMITS) for _, _, program, tests in attempts])
    passed = [f"{family}: {name}" for (family, name, *_), outcome in zip(attempts, outcomes, strict=True) if outcome.ok]
    return Counter(family for family, *_ in attempts), passed


def escaped() -> tuple[Counter[str], list[str]]:
    """How many escapes were tried, by family, and what came of them."""
    with world() as outside:
        attempts = escapes(outside.told())
        jobs = [partial(run, program, LIMITS) for *_, program in attempts]
        jobs += [partial(grade, "", program, LIMITS) for *_, program in attempts]
        outcomes = together(jobs)
        settled()
        got = [
            f"{family}: {name}: {outcome.stdout[:100]!r}"
            for (family, name, _), outcome in zip(attempts * 2, outcomes, strict=True)
            if "GOT" in outcome.stdout
        ]
        return Counter(family for family, *_ in attempts * 2), got + outside.harm()


def rows_a_second() -> float:
    tests = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
    started = time.perf_counter()
    outcomes = together([partial(grade, "def add(a, b): return a + b", tests)] * SPEED)
    assert all(outcome.ok for outcome in outcomes)
    return round(SPEED / (time.perf_counter() - started), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for scripts; it is JSON either way")
    parser.parse_args()
    right = sum(grade(RIGHT, tests, LIMITS).ok for tests in TESTS.values())
    forged_by_family, passed = forged()
    escapes_by_family, got = escaped()
    families = forged_by_family + escapes_by_family
    claims: list[Claim] = [
        claim("attempts", families.total(), ">= 500", families.total() >= 500),
        claim("grades that were forged", len(passed), "0", not passed, which=passed[:20]),
        claim("attempts that left the sandbox", len(got), "0", not got, which=got[:20]),
        claim("right programs that pass", right, f"{len(TESTS)}", right == len(TESTS)),
    ]
    result: dict[str, Any] = {
        "claims": claims, "families": dict(families), "rows_a_second": rows_a_second(), "missing": missing(),
        "bubblewrap": bool(bubblewrap()), "kernel": platform.release(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
