"""One at a time, also where a lock's file is made anew while somebody waits."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.execution.lock import lock
from engine.store.store import Store


def test_a_second_holder_is_refused_and_a_later_one_is_not(store: Store) -> None:
    with lock(store, "a-1"):
        with pytest.raises(UserError, match="another run is making a-1"), lock(store, "a-1"):
            pass
        with lock(store, "b-2"):
            pass
    with lock(store, "a-1"):
        pass
    assert not list(Path(store.path("work")).glob("*.lock"))


def test_a_file_that_went_while_it_was_opened_is_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A opens the file and holds it; B opens it; A lets go, and the file goes; B locks what has no name any more; C makes the
    file anew and locks that: B and C must not both hold."""
    path = store.scratch("a-1").with_suffix(".lock")
    real = fcntl.flock
    calls: list[int] = []

    def flock(descriptor: Any, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:  # between B's opening and its locking
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(store, "a-1"):
        monkeypatch.setattr(fcntl, "flock", real)
        with pytest.raises(UserError), lock(store, "a-1"):
            pass
    assert len(calls) == 2
