"""The process in which one target's cases run: `python -m tests.fuzz.case_runner TARGET SEED SECONDS CASES FOLDER`.

The case at hand stands in FOLDER/case before it is tried, so that whoever started this process knows what it died of. The last line
on stdout is JSON: cases, faults (what was raised, and the case), peak_mb.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.errors import FlywheelError
from tests.fuzz.mutations import mutated

MEMORY = 2 << 30  # bytes
LONGEST = 60  # seconds for a case; it is said by ending the process
CORPUS = Path(__file__).parent / "corpus"


def known(target: str) -> list[bytes]:
    """Cases that were a fault once."""
    return [file.read_bytes() for file in sorted((CORPUS / target).glob("*"))]


def _names(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {"case", "so_far"})


def run(target: str, seed: int, seconds: float, most: int, folder: Path) -> dict[str, Any]:
    """Known cases and seeds first, then changed ones until the time is over or there were enough."""
    module = import_module(f"tests.fuzz.{target}")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    before = _names(folder)
    whole = [*known(target), *module.seeds()]
    draw, until, told = random.Random(seed), time.monotonic() + seconds, dict[str, Any](cases=0, faults=[])
    while told["cases"] < len(whole) or (time.monotonic() < until and told["cases"] < most):
        data = whole[told["cases"]] if told["cases"] < len(whole) else mutated(whole, draw)
        (folder / "case").write_bytes(data)
        signal.alarm(LONGEST)
        fault = ""
        try:
            module.attempt(data, work)
        except FlywheelError as error:
            fault = "" if str(error) and len(str(error)) < 20_000 else f"a message of {len(str(error))} characters"
        except BaseException as error:
            fault = "".join(traceback.format_exception(error, limit=-4))
        signal.alarm(0)
        told["cases"] += 1
        if fault:
            told["faults"].append([fault, data.hex()])
        if told["cases"] % 50 == 0:
            (folder / "so_far").write_text(json.dumps(told))
        if len(told["faults"]) >= 20:
            break
    if (after := _names(folder)) != before:
        told["faults"].append([f"files outside its folder: {after}", ""])
    return {**told, "peak_mb": max(_peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10}


def _peak() -> int:
    """KiB that this process had at most. `ru_maxrss` begins with what the process had that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    target, seed, seconds, most, folder = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable()
    os.environ["FLYWHEEL_STORE"] = f"{folder}/work/store"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.RLIM_INFINITY))
    made = run(target, int(seed), float(seconds), int(most), Path(folder))
    import engine.reader.apart as apart

    apart._end_idle()  # pyright: ignore[reportPrivateUsage]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(json.dumps({**made, "peak_mb": max(made["peak_mb"], peak)}))


if __name__ == "__main__":
    main()
