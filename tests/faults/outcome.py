"""What came of one injected fault."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

# same: the run ended, or went on and ended, with the digests of an undisturbed one. told: it was told in words, nothing was lost,
# and what heals it ended with those digests. unhurt: the work was over before the fault came; it counts for nothing.
Came = Literal["same", "told", "unhurt", "wrong", "traceback", "orphan", "leftover", "silent"]
GOOD = ("same", "told")


@dataclass(frozen=True)
class Outcome:
    """One fault, what it struck, and what came of it.

    Attributes:
        fault: its family and name, e.g. `kill the worker`.
        struck: the stage kind, or the sort of file.
    """

    fault: str
    struck: str
    came: Came
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.came in GOOD


def table(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """A line a fault: how often, on how many sorts of thing, and what came of it."""
    by_fault: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        by_fault[one.fault].append(one)
    return [
        {
            "fault": fault,
            "times": sum(one.came != "unhurt" for one in those),
            "struck": len({one.struck for one in those}),
            "came": dict(Counter(one.came for one in those)),
        }
        for fault, those in sorted(by_fault.items())
    ]
