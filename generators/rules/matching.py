"""Where a recipe's pattern is found in what a model wrote: a process of its own, since a pattern may try for ever.

It reads a pattern, whether case counts, and a text, one JSON array a line, and answers each with a line: null, or the last find's group
`answer` ("" where there is no such group). It is started by its path and imports nothing of Flywheel.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys

MEMORY = 1 << 30


def last(pattern: str, ignore_case: bool, text: str) -> str | None:
    found = list(re.finditer(pattern, text, re.IGNORECASE if ignore_case else 0))
    if not found:
        return None
    return found[-1]["answer"] if "answer" in found[-1].re.groupindex else ""


def main(cpu_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            found = last(*json.loads(line))
        except (MemoryError, RecursionError):
            found = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
