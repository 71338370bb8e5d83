"""A note of what a stage under way is doing, for those who look from elsewhere (`flywheel status`)."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.execution.throughput import Throughput
from engine.view.unfinished import PROGRESS

EVERY_S = 1.0
BYTES = 2000


class ProgressNote:
    """Written at most once a second, in its place and of one size: whoever reads it finds one whole, or a mixture that is no JSON.

    Args:
        scratch: of the stage.
    """

    def __init__(self, scratch: Path) -> None:
        self._file = scratch / PROGRESS
        self._descriptor = -1
        self._pace = Throughput()
        self._told: dict[str, Any] = {"started": time.time()}
        self._parts = self._rows = 0
        self._written = time.monotonic()

    def __enter__(self) -> ProgressNote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def hear(self, event: dict[str, Any]) -> None:
        """Take in what the worker says."""
        match event.get("event"):
            case "progress":
                self._pace.tell(event["done"], event["total"])
                self._told |= {name: event[name] for name in ("done", "total", "unit")}
            case "commit":
                self._parts, self._rows = self._parts + 1, self._rows + event["rows"]
                self._told |= {"parts": self._parts, "rows": self._rows}
            case "workers":
                self._told |= {name: event[name] for name in ("workers", "nodes")}
                self._told |= {"dashboard": event["dashboard"]} if event.get("dashboard") else {}
            case "say":
                self._told["text"] = event["text"][:200]
            case _:
                return
        now = time.monotonic()
        if now - self._written >= EVERY_S:
            self._written = now
            self._write()

    def _write(self) -> None:
        rate, left = self._pace.rate, self._pace.left_s
        told = {**self._told, "at": time.time(), "rate": rate, "left_s": left}
        data = json.dumps(told).encode()[:BYTES].ljust(BYTES)
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.pwrite(self._descriptor, data, 0)
        except OSError:  # a full disk, or the stage has just finished and its folder is gone
            return
