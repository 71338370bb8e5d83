"""How fast something goes, and how long it takes, from what was told of it so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Throughput:
    """What is done of something that is under way, since it was first told of: after a kill, work that was done before is no speed.

    Attributes:
        total: None where nobody knows.
    """

    done: float = 0
    total: float | None = None
    _first: tuple[float, float] | None = field(default=None)  # when, and how much was done
    _now: float = 0.0

    def tell(self, done: float, total: float | None) -> None:
        self.done, self.total, self._now = done, total, time.monotonic()
        if self._first is None or done < self._first[1]:
            self._first = self._now, done

    @property
    def rate(self) -> float | None:
        """A second; None where that can't be told yet."""
        if self._first is None or self.done <= self._first[1] or self._now <= self._first[0]:
            return None
        return (self.done - self._first[1]) / (self._now - self._first[0])

    @property
    def left_s(self) -> float | None:
        return (self.total - self.done) / self.rate if self.total and self.rate else None
