"""Where a recipe's pattern is found in what a model wrote: a process of its own, since a pattern may try for ever.

Asked for a pattern, whether case counts, and a text, it answers null, or the last find's group `answer` ("" where there is no such group).
"""

from __future__ import annotations

import re

from generators.rules.bounded_script import serve


def last(pattern: str, ignore_case: bool, text: str) -> str | None:
    try:
        found = list(re.finditer(pattern, text, re.IGNORECASE if ignore_case else 0))
    except (MemoryError, RecursionError):
        return None
    if not found:
        return None
    return found[-1]["answer"] if "answer" in found[-1].re.groupindex else ""


if __name__ == "__main__":
    serve(last)
