"""One at a time: who makes an artifact holds its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from engine.errors import UserError
from engine.store.store import Store


@contextlib.contextmanager
def lock(store: Store, artifact: str) -> Generator[None]:
    """Keep two runs from making the same artifact at once (on one machine).

    The file goes when the lock is let go. Another run may have opened it before, and would then lock a file that has no name
    any more while a third one makes a new file: so a lock counts only if the file still stands where it was opened.

    Raises:
        UserError: somebody else holds it.
    """
    path = store.scratch(artifact).with_suffix(".lock")
    with contextlib.ExitStack() as opened:
        while True:
            file = opened.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another run is making {artifact} in this store right now; wait for it, or stop it."
                ) from None
            if _stands(path, file.fileno()):
                break
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _stands(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
