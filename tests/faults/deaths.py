"""Kills and signals at random moments of a stage's work: of the worker, of the command that started it alone, of both, of the engine,
of one of the processes that a stage's tasks are spread over."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from engine.execution.executors.choice import LEAST_SET
from tests.faults.ground import Ground, Trial, alive, commandline, processes
from tests.faults.outcome import Outcome

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
VICTIMS = ("worker", "command", "keeper", "both")
SLICES = 5  # of the stage whose pool is struck, of six: the last one is hardly ever seen under way


def kill(ground: Ground, stage: str, victim: str, seed: int, share: float = 1.0) -> Outcome:
    """`kill -9` at a moment drawn evenly over a share of the time that the undisturbed stage took; if it was over, over half of that."""
    fault, kind = f"kill -9 of the {victim.replace('both', 'worker and the command')}", ground.kind_of[stage]
    with ground.trial(stage) as trial:
        process = trial.start()
        if not trial.begun(process):
            return Outcome(fault, kind, "wrong", f"it did not begin: {process.communicate()[0][-500:]}")
        _pause(ground, trial, seed, share)
        targets = trial.workers() if victim in ("worker", "both") else trial.keepers() if victim == "keeper" else []
        if victim in ("command", "both") and process.poll() is None:
            targets.append(process.pid)
        struck = bool(targets)
        for one in targets:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        trial.end(process)
        came, detail = trial.finish()
    if struck or came != "same":
        return Outcome(fault, kind, came, detail)
    return kill(ground, stage, victim, seed, share / 2) if share > 0.2 else Outcome(fault, kind, "unhurt")


def kill_engine(ground: Ground, stage: str, seed: int) -> Outcome:
    """`kill -9` of the process that vLLM's engine is in: the stage brings it back, or is run again."""
    fault, kind = "kill -9 of the engine", ground.kind_of[stage]
    with ground.trial(stage) as trial:
        process = trial.start()

        found = set[int]()

        def engines() -> bool:  # as long as they have the name that they were started with
            found.update(
                one for one in processes(trial.mark) if "generators.backends.process.child" in commandline(one)
            )
            return bool(found)

        if not trial.begun(process) or not trial.wait(process, engines):
            came, detail = trial.judge(trial.end(process))
            return Outcome(fault, kind, "unhurt" if came == "same" else came, detail)
        time.sleep(random.Random(seed).random() * 8)
        found = {one for one in found if alive(one)}
        for one in found:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        code = trial.end(process)
        came, detail = trial.finish() if code else trial.judge(code)
        return Outcome(fault, kind, came if found or came != "same" else "unhurt", detail)


def kill_of_pool(ground: Ground, stage: str, seed: int) -> Outcome:
    """`kill -9` of one of two processes that have a stage's slices, after so many of them were committed."""
    fault, kind, draw = "kill -9 of a process of the pool", ground.kind_of[stage], random.Random(seed)
    with ground.trial(stage) as trial:
        trial.extra[LEAST_SET] = "0"  # or so little would be done in one process
        process = trial.start("run", str(ground.recipe), "--only", stage, "--workers", "2")
        parts = draw.randrange(SLICES)

        def under_way() -> bool:
            return len(list((trial.artifact / "data").glob("*.parquet"))) >= parts and bool(trial.pool())

        if not trial.wait(process, under_way) or not (pool := trial.pool()):
            came, detail = trial.judge(trial.end(process))
            return Outcome(fault, kind, "unhurt" if came == "same" else came, detail)
        time.sleep(draw.random() * 0.05)
        with suppress(ProcessLookupError):
            os.kill(draw.choice(pool), signal.SIGKILL)
        if trial.end(process) == 0:  # it had done its part
            return Outcome(fault, kind, *trial.judge(0))
        if "flywheel: " not in trial.said:
            return Outcome(fault, kind, "silent", trial.said[-800:])
        came, detail = trial.finish("--workers", "2")
        return Outcome(fault, kind, "told" if came == "same" else came, detail)


def stop(ground: Ground, stage: str, number: signal.Signals, seed: int) -> Outcome:
    """A signal that asks to stop: its exit code, a line that says how to go on, and no process left."""
    fault, kind = number.name, ground.kind_of[stage]
    with ground.trial(stage) as trial:
        process = trial.start()
        if not trial.begun(process):
            return Outcome(fault, kind, "wrong", f"it did not begin: {process.communicate()[0][-500:]}")
        _pause(ground, trial, seed)
        process.send_signal(number)
        code = trial.end(process)
        if code == 0:
            came, detail = trial.judge(code)
            return Outcome(fault, kind, "unhurt" if came == "same" else came, detail)
        if code == -number and "stages done" in trial.said:  # it was over, and Python was taking itself apart
            return Outcome(fault, kind, "unhurt")
        if code != CODES[number]:
            return Outcome(fault, kind, "wrong", f"exit code {code}: {trial.said[-500:]}")
        if "goes on" not in trial.said and "go on" not in trial.said:
            return Outcome(fault, kind, "silent", trial.said[-500:])
        return Outcome(fault, kind, *trial.finish())


def _pause(ground: Ground, trial: Trial, seed: int, share: float = 1.0) -> None:
    time.sleep(share * random.Random(seed).random() * min(ground.seconds_of[trial.stage] + 0.5, 40))
