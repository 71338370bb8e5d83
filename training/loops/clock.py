"""Where the time of a step goes: seconds by part, for a stage's metrics."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager


class Clock:
    """Seconds since it was last read, whole (`seconds`) and by part (`seconds/PART`)."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._since = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Within this, time counts for a part."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.monotonic() - started

    def read(self) -> dict[str, float]:
        """The seconds, which begin anew."""
        now = time.monotonic()
        found = {"seconds": now - self._since, **{f"seconds/{name}": s for name, s in sorted(self._parts.items())}}
        self._parts, self._since = {}, now
        return found
