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

    def __init__(self, store: StoreFiles, artifact: str, keep: Callable[[Path], AbstractContextManager[Path]]) -> None:
        self._store, self._artifact, self._keep = store, artifact, keep

    def put(self, name: str, data: bytes | memoryview, *, kept: bool = True) -> None:
        """Write a file, whole or not at all.

        Args:
            kept: it lasts, and is looked at when the stage goes on after a kill. What is not kept is to be made anew then.
        """
        if not self._store.local:
            self._store.fs.pipe_file(self._store.path("work", self._artifact, name), bytes(data))
            return
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if kept:
            with self._keep(file) as partial:
                partial.write_bytes(data)
        else:
            with whole_file(file, lasting=False) as partial:
                partial.write_bytes(data)

    def get(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        """The bytes of a file, or some of them.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        if not self._store.local:
            place = ("work", self._artifact, name)
            if begin == 0 and end is None:
                return self._store.read(*place)
            return self._store.read_range(begin, self._store.size(*place) if end is None else end, *place)
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
            return [f"{folder}/{name}" for name in self._store.entries("work", self._artifact, folder)]
        root = self.path(folder)
        return sorted(f"{folder}/{f.relative_to(root).as_posix()}" for f in root.rglob("*") if f.is_file())

    def exists(self, name: str) -> bool:
        return self.path(name).exists() if self._store.local else self._store.exists("work", self._artifact, name)

    def drop(self, folder: str) -> None:
        """Take away a folder, or a file."""
        if not self._store.local:  # what is no file's name is nothing to delete
            self._store.delete(("work", self._artifact, name) for name in [folder, *self.names(folder)])
            return
        for name in [*self.names(folder), *([folder] if self.exists(folder) and not self._folder(folder) else [])]:
            self.path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Take away all of it (a local one goes with the scratch folder)."""
        if not self._store.local:
            self._store.delete_folder("work", self._artifact)

    def path(self, name: str) -> Path:
        """Where a file is, in a local store."""
        return self._store.scratch(self._artifact) / name

    def _folder(self, name: str) -> bool:
        return self.path(name).is_dir()
