"""Two and three runs of one recipe at once, and two recipes that share a stage."""

from __future__ import annotations

from tests.faults.ground import Ground
from tests.faults.outcome import Outcome


def together(ground: Ground, stage: str, runs: int) -> Outcome:
    """All end well, with the same digests, and the server is asked once for each answer."""
    fault, kind = f"{runs} runs at once", ground.kind_of[stage]
    with ground.trial(stage) as trial:
        before = dict(ground.server.served)
        started = [trial.start() for _ in range(runs)]
        codes = [trial.end(process) for process in started]
        if any(codes):
            return Outcome(fault, kind, "wrong", f"exit codes {codes}: {trial.said[-800:]}")
        twice = [key for key, count in ground.server.served.items() if count - before.get(key, 0) > 1]
        if twice:
            return Outcome(fault, kind, "wrong", f"{len(twice)} requests were asked twice")
        return Outcome(fault, kind, *trial.judge(0))
