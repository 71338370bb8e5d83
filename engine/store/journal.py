"""What was written for an artifact that is not finished: each file's digest, noted before the file is in its place.

A stage that goes on after a kill takes what is there for what it wrote. The journal tells whether it still is: what is not in it, or
is another, was not written by that stage.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from engine.store.whole_file import sync


class Journal:
    """Lines of `DIGEST NAME` in a file that several processes may append to."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def note(self, name: str, digest: str) -> None:
        """This is about to be the digest of a file; until it is, the one before counts, too."""
        with self.file.open("a+b", buffering=0) as file:
            fresh = not file.seek(0, os.SEEK_END)
            torn = (
                not fresh and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            )  # a line that a kill cut off takes this one with it
            file.write(f"{chr(10) * torn}{digest} {name}\n".encode())
            os.fsync(file.fileno())
        if fresh:
            sync(self.file.parent)

    def noted(self) -> dict[str, set[str]]:
        """Name -> the digests that were noted of it."""
        noted: defaultdict[str, set[str]] = defaultdict(set)
        lines = self.file.read_bytes() if self.file.exists() else b""
        for line in lines.decode("utf-8", "replace").splitlines():
            digest, _, name = line.partition(" ")
            noted[name].add(digest)
        return dict(noted)
