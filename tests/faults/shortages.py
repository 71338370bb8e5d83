"""Too little of what a process may have: memory, open files, the size of a file."""

from __future__ import annotations

import resource

from tests.faults.ground import Ground
from tests.faults.outcome import Outcome

SHORT = {
    "memory": (resource.RLIMIT_AS, (800 << 20, 1200 << 20, 1600 << 20, 2400 << 20)),
    "open files": (resource.RLIMIT_NOFILE, (12, 20, 32)),
    "file size": (resource.RLIMIT_FSIZE, (100, 2000, 9000)),
}


def short(ground: Ground, stage: str, what: str, amount: int) -> Outcome:
    """Words, or a good end; with enough it goes on to the same digests."""
    fault, kind = f"too little: {what}", ground.kind_of[stage]
    with ground.trial(stage) as trial:
        code = trial.end(trial.start(limits=(SHORT[what][0], amount)))
        if code == 0:
            came, detail = trial.judge(code)
            return Outcome(fault, kind, "unhurt" if came == "same" else came, detail)
        if "Traceback (most recent call last)" in trial.said:
            return Outcome(fault, kind, "traceback", trial.said[-1500:])
        # Polars' and OpenBLAS' own words, with which they end the process where it stands.
        if not any(words in trial.said for words in ("flywheel: ", "memory allocation of", "failed to allocate")):
            return Outcome(fault, kind, "silent", f"exit code {code}: {trial.said[-800:]}")
        came, detail = trial.finish()
        return Outcome(fault, kind, "told" if came == "same" else came, detail)
