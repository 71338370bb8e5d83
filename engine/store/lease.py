"""One at a time: who makes an artifact holds its lease, and whoever lost it can't write any more.

On disk the lease is a lock on a file (`engine.store.file_lease`), in a store that can't lock an object that is kept alive
(`engine.store.object_lease`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from engine.errors import Busy
from engine.store import file_lease, object_lease
from engine.store.file_lease import FileLease, FileQueue, lock_file
from engine.store.files import StoreFiles
from engine.store.holder import Holder, Lease, Other, Superseded
from engine.store.object_lease import ObjectLease, ObjectQueue

__all__ = ["HELD", "Holder", "Lease", "Superseded", "is_held", "lease", "lock_file", "take_part"]

POLL_S = 0.2
HELD = "held"  # the event that a worker has its part in the lease
Say = Callable[[str], None]


@contextlib.contextmanager
def lease(
    store: StoreFiles,
    artifact: str,
    *,
    no_wait: bool = False,
    say: Say = lambda text: None,
    pause: Callable[[float], None] = time.sleep,
) -> Generator[Lease]:
    """Hold the lease of an artifact; wait for it where another has it.

    Args:
        no_wait: raise `Busy` instead of waiting.
        say: is told for whom this waits.
        pause: waits for some seconds; what it raises ends the waiting.

    Raises:
        Busy: another has it.
    """
    queue = FileQueue(store, artifact, say) if store.local else ObjectQueue(store, artifact, say)
    known: Holder | bool | None = False
    while isinstance(taken := queue.take(), Other):
        if no_wait:
            raise Busy(f"{taken} is making {artifact} right now. Without `--no-wait` this run waits for it.")
        if taken.holder != known:
            say(f"waits for {taken}{taken.hint}")
            known = taken.holder
        pause(POLL_S)
    store.lease = taken
    try:
        yield taken
    finally:
        store.lease = None
        taken.release()


def take_part(store: StoreFiles, told: dict[str, Any]) -> Lease:
    """In a process that works for the holder: the same lease."""
    if store.local:
        return FileLease(told["artifact"], told["token"], Path(told["path"]))
    kept = ObjectLease(store, told["artifact"], Holder(**told["holder"]), told["version"], told["ttl_s"])
    kept.keep()
    return kept


def is_held(store: StoreFiles, artifact: str) -> bool:
    """Whether somebody makes this artifact right now. Looks, and leaves nothing."""
    return (file_lease if store.local else object_lease).is_held(store, artifact)
