"""A clock that jumps while a stage works, forwards and backwards, and one that is years off (libfaketime)."""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.faults.ground import Ground
from tests.faults.outcome import Outcome

LIBRARIES = [
    Path(folder) / "faketime" / "libfaketimeMT.so.1"
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
]
JUMPS = {"an hour back": "-1h", "a year back": "-365d", "a day ahead": "+1d", "ten years ahead": "+3650d"}


def library() -> Path | None:
    return next((one for one in LIBRARIES if one.exists()), None)


def jump(ground: Ground, stage: str, which: str, seed: int) -> Outcome:
    """The clock jumps at a random moment; the stage ends as if nothing had been."""
    fault, kind = f"clock: {which}", ground.kind_of[stage]
    with ground.trial(stage) as trial:
        clock = trial.folder / "clock"
        clock.write_text("+0")
        trial.extra = {
            "LD_PRELOAD": str(library()), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        process = trial.start()
        if not trial.begun(process):
            return Outcome(fault, kind, "wrong", f"it did not begin: {process.communicate()[0][-500:]}")
        time.sleep(random.Random(seed).random() * min(ground.seconds_of[stage] + 0.5, 20))
        over = process.poll() is not None
        clock.write_text(JUMPS[which])
        came, detail = trial.judge(trial.end(process))
        return Outcome(fault, kind, "unhurt" if over and came == "same" else came, detail)
