"""The next files of an artifact elsewhere are fetched while one is worked on, where a process reads them one after the other."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

AHEAD, STEP = 2, 8  # files that are fetched ahead; so far apart are those that one of several processes reads
FETCHERS = 2

_readings: dict[str, Succession] = {}
_wanted: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
_started = False


class Succession:
    """How far a process is in the files of an artifact."""

    def __init__(self, names: list[str]) -> None:
        self._names, self._places = names, {name: at for at, name in enumerate(names)}
        self._at = self._asked = -1

    def soon(self, name: str) -> list[str]:
        """What is likely to be read after this file, each named once."""
        at = self._places.get(name)
        if at is None:
            return []
        before, self._at = self._at, at
        if before < 0 or not 0 < at - before <= STEP:
            return []
        first, end = max(at, self._asked) + 1, at + 1 + AHEAD
        self._asked = max(self._asked, end - 1)
        return self._names[first:end]


def soon(place: str, names: Callable[[], list[str]], name: str) -> list[str]:
    """Of the files at a place what is likely to be read after this one."""
    if place not in _readings:
        _readings[place] = Succession(names())
    return _readings[place].soon(name)


def fetch(bring: Callable[[], Any]) -> None:
    """Have something called meanwhile; whether it fails will be seen by who needs it."""
    global _started
    if not _started:
        _started = True
        for _ in range(FETCHERS):
            threading.Thread(target=_fetch, name="prefetch", daemon=True).start()
    _wanted.put(bring)


def _fetch() -> None:
    while True:
        with contextlib.suppress(Exception):
            _wanted.get()()


def _forked() -> None:
    global _started, _wanted
    _started, _wanted = False, queue.SimpleQueue()
    _readings.clear()


os.register_at_fork(after_in_child=_forked)
