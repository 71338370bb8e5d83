"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def whole_file(target: Path, *, private: bool = False, shared: bool = False) -> Generator[Path]:
    """A path beside `target` to write to. What is written there takes its place, by a rename, when the block ends without an error.

    What a kill leaves behind is written over by whoever writes the same file again.

    Args:
        private: readable by its owner alone, from the first byte on.
        shared: others may be writing the same file at the same time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex if shared else ''}partial")
    if private:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    yield partial
    partial.replace(target)
