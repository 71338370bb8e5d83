"""Files that all processes of a stage reach, wherever they run, while it is under way: what one phase leaves for the next.

In a local store they lie in the stage's scratch folder; else in the store itself, under `work/ARTIFACT/`. They go when the artifact
is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.store.files import StoreFiles
from engine.store.whole_file import whole_file

Array = np.ndarray[Any, np.dtype[Any]]


class Exchange:
    """Whole files by name (`tallies/00001.json`).

    Args:
        artifact: that is being made.
        keep: has a file of the scratch folder looked at when the stage goes on (`Job.keep`).
    """

    def __init__(self, store: StoreFiles, artifact: str, keep: Callable[..., AbstractContextManager[Path]]) -> None:
        self._store, self._artifact, self._keep = store, artifact, keep

    def put(self, name: str, data: bytes | memoryview, *, kept: bool = True) -> None:
        """Write a file, whole or not at all. Two processes may write the same one: a task is given to another where its node seems lost.

        Args:
            kept: it lasts, and is looked at when the stage goes on after a kill. What is not kept is to be made anew then.

        Raises:
            Superseded: another run makes the artifact now, or it is finished.
        """
        self._store.fence("artifacts", self._artifact)
        if not self._store.local:
            self._store.fs.pipe_file(self._place(name), bytes(data))
            return
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if kept:
            with self._keep(file, shared=True) as partial:
                partial.write_bytes(data)
        else:
            with whole_file(file, shared=True, lasting=False) as partial:
                partial.write_bytes(data)

    def get(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        """The bytes of a file, or some of them.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        if not self._store.local:
            return cast(bytes, self._store.fs.cat_file(self._place(name), begin or None, end))
        with self.path(name).open("rb") as file:
            file.seek(begin)
            return file.read() if end is None else file.read(end - begin)

    def put_array(self, name: str, values: Array, *, kept: bool = True) -> None:
        """The bytes of an array, without its type and shape."""
        self.put(name, memoryview(cast(Any, np.ascontiguousarray(values))).cast("B") if values.size else b"", kept=kept)

    def array(self, name: str, kind: Any, begin: int = 0, end: int | None = None) -> Array:
        """An array that was put there, or its items from `begin` to `end`; mapped where the file is a local one."""
        size = np.dtype(kind).itemsize
        if self._store.local and (file := self.path(name)).stat().st_size:
            return np.memmap(file, kind, "r")[begin:end]
        return np.frombuffer(self.get(name, begin * size, None if end is None else end * size), kind)

    def names(self, folder: str) -> list[str]:
        """Names of all files below a folder, sorted, with the folder's."""
        if not self._store.local:
            return [f"{folder}/{name}" for name in self._store.walk("work", self._artifact, folder)]
        root = self.path(folder)
        found = (f for f in root.rglob("*") if f.is_file() and not f.name.endswith("partial"))  # as a kill leaves them
        return sorted(f"{folder}/{f.relative_to(root).as_posix()}" for f in found)

    def exists(self, name: str) -> bool:
        return self.path(name).exists() if self._store.local else bool(self._store.fs.exists(self._place(name)))

    def drop(self, folder: str) -> None:
        """Take away a folder, or a file."""
        for name in [*self.names(folder), *([folder] if self.exists(folder) and not self._folder(folder) else [])]:
            if self._store.local:
                self.path(name).unlink(missing_ok=True)
            else:
                self._store.fs.rm_file(self._place(name))

    def clear(self) -> None:
        """Take away all of it (a local one goes with the scratch folder)."""
        if not self._store.local and self._store.walk("work", self._artifact):
            self._store.fs.rm(self._store.path("work", self._artifact), recursive=True)

    def path(self, name: str) -> Path:
        """Where a file is, in a local store."""
        return self._store.scratch(self._artifact) / name

    def _folder(self, name: str) -> bool:
        return self._store.local and self.path(name).is_dir()

    def _place(self, name: str) -> str:
        return self._store.path("work", self._artifact, name)
