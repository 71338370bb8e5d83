"""The other side of a `BoundedProcess`: answers lines, and is ended by a timer where one takes too long.

Imported by what `python -m` starts, and imports nothing of Flywheel itself.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 1 << 30


def serve(answer: Callable[..., Any]) -> None:
    """Answer each line of standard input, a JSON array of arguments, with a line, within the CPU seconds that the command line names.

    Memory and time are the process's own limits: no alarm is heeded by a loop in C, a signal that ends the process is.
    """
    cpu_s = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        answered = answer(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answered), flush=True)
