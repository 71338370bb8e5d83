"""A server that fails and garbles most of its answers: the rows are those of a sound one, or rejected with a reason."""

from __future__ import annotations

from tests.faults.ground import Ground
from tests.faults.outcome import Outcome
from tests.faults.world import answer
from tests.generators.faulty_server import FaultyServer

# The fields of each stage that name a server.
FIELDS = {"asked": ["server"], "cited": ["server"], "talks": ["server", "user_server"], "compared": ["server"]}


def garble(ground: Ground, stage: str, share: float) -> Outcome:
    """Most attempts fail, each in a way of its own; in the end every row is there and right."""
    fault, kind = f"a server that garbles {share:.0%}", ground.kind_of[stage]
    with ground.trial(stage) as trial, FaultyServer(share=share, answer=answer, stall=2) as server:
        words = ["run", str(ground.recipe), "--only", stage]
        for field in FIELDS[stage]:
            words += ["--set", f"{stage}.{field}.url={server.url}", "--set", f"{stage}.{field}.attempts=40"]
            words += ["--set", f"{stage}.{field}.timeout_s=2"]
        code = trial.command(*words)
        if not server.faults:
            return Outcome(fault, kind, "unhurt")
        return Outcome(fault, kind, *trial.judge(code))
