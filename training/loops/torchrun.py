"""`torchrun ... -m flywheel run recipe.yaml`: the first of the processes that torchrun starts, on one machine or on many nodes, leads the
run; the others follow.

The one that leads does what `flywheel run` does, and it alone holds leases and writes. Where a stage shares its steps, its process
announces that to the others, each of which has a fresh process do its part (`python -m training.loops.torchrun NUMBER PARENT`). In
between they wait. When the run is over, all end with its exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist

from engine.errors import FlywheelError, StageFailed
from engine.execution import threads
from engine.redaction import redacted
from engine.view.output import put
from training.loops.launch import Launch, launch, take_launch
from training.loops.roster import GO_ON, LOOK_S, SILENCE_S, Roster

PDEATHSIG = 1  # of prctl
CUT_OFF = 75  # exit code of one that was cut off from the others: no fault of its own


def take_part(command: Callable[[], None]) -> None:
    """In each process that torchrun starts: lead or follow, as its rank says; ends the process.

    Args:
        command: `flywheel`'s, which ends by `SystemExit`.
    """
    launched = take_launch()
    if launched is None:  # one alone
        command()
        return
    try:
        roster = Roster(launched)
        if launched.rank:
            sys.exit(_wait(launched, roster))
    except FlywheelError as error:
        words, code = str(error), error.exit_code
    except dist.DistError:
        words, code = f"torchrun's store at {launched.address}:{launched.port} is gone, and with it the run. {GO_ON}", 1
    else:
        _lead(roster, command)
        return
    put(f"flywheel: {words}", error=True)
    sys.exit(code)


def _lead(roster: Roster, command: Callable[[], None]) -> None:
    code = 1
    with roster.alive():
        try:
            command()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            raise
        finally:
            roster.dismiss(code)


def _wait(launched: Launch, roster: Roster) -> int:
    """Do the parts of stages as they are announced, until the run is over. Gives the exit code.

    Raises:
        StageFailed: nothing is heard any more of the process that leads.
    """
    parts: dict[int, subprocess.Popen[bytes]] = {}
    number = 1
    try:
        with roster.alive():
            while (code := roster.ended()) is None:
                while (count := roster.count(number)) is not None:
                    if launched.rank < count:
                        parts[number] = _start(number)
                    number += 1
                for which, part in list(parts.items()):
                    status = part.poll()
                    if status is None and roster.cancelled(which):
                        part.kill()
                    elif status is not None:
                        del parts[which]
                        if status not in (0, CUT_OFF) and not roster.cancelled(which):
                            roster.lose(which, f"is gone: it {_cause(status)}. {GO_ON}")
                if roster.silent(0):
                    raise StageFailed(
                        f"nothing was heard for {SILENCE_S} s of {roster.name(0)} which leads the run. {GO_ON}"
                    )
                time.sleep(LOOK_S)
            roster.leave()
            return code
    finally:
        for part in parts.values():
            part.kill()


def _start(number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(number), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        env={**threads.environment(), "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "true"},
    )


def _cause(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with code {status}"


def main() -> int:
    """In a fresh process: the part of one stage."""
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            return 1
    launched = launch()
    assert launched is not None
    from training.loops.process_group import cut_off, follow

    try:
        follow(launched, number)
    except FlywheelError as error:
        put(f"flywheel: process {launched.rank}: {error}", error=True)
        return error.exit_code
    except Exception as error:
        if cut_off(error):
            return CUT_OFF
        put(redacted(traceback.format_exc()), error=True)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries leave threads behind
