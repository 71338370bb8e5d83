"""Files appear whole or not at all, and last: what was renamed is on the disk, and so is the folder that names it."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def whole_file(target: Path, *, private: bool = False, shared: bool = False, lasting: bool = True) -> Generator[Path]:
    """A path beside `target` to write to. What is written there takes its place, by a rename, when the block ends without an error.

    With an error nothing is left. What a kill leaves behind is written over by whoever writes the same file again.

    Args:
        private: readable by its owner alone, from the first byte on.
        shared: others may be writing the same file at the same time.
        lasting: it outlives a power cut; without, the file may be gone or empty then.
    """
    make_folder(target.parent)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex if shared else ''}partial")
    try:
        if private:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        yield partial
        if lasting:
            sync(partial)
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if lasting:
        sync(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, to last."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(place: Path) -> None:
    """Have a file's bytes, or a folder's names, reach the disk."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except PermissionError:  # a folder that one may go through and not list
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems have no such thing for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
