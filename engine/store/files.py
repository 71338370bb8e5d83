"""The files of a store, by fsspec: the root may be a path or any URL it knows (`s3://bucket/prefix`).

One primitive carries all durability: `put`, which makes one file appear whole or not at all (a rename on disk, one PUT on an
object store).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any, cast

import fsspec

from engine.errors import UserError
from engine.redaction import exposed
from engine.store.digest import digest_file


def default_url() -> str:
    """`$FLYWHEEL_STORE`, or `.flywheel` in the current folder."""
    return os.environ.get("FLYWHEEL_STORE") or ".flywheel"


class StoreFiles:
    """A root URL and the few operations on its files."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        if told := exposed(self.url):  # it stands in records and messages
            raise UserError(
                f"the store's URL holds {told}. Give it by the environment (AWS_ACCESS_KEY_ID, ...), or by fsspec's own files."
            )
        fs, root = cast(tuple[Any, str], fsspec.core.url_to_fs(self.url))  # pyright: ignore[reportAttributeAccessIssue]
        self.fs: Any = fs
        self.root = root.rstrip("/")
        self.local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))

    def path(self, *parts: str) -> str:
        """A path inside the store.

        Raises:
            UserError: a part would leave it.
        """
        joined = "/".join(parts)
        if joined.startswith("/") or ".." in joined.split("/"):
            raise UserError(f"`{joined}` would leave the store {self.url}.")
        return f"{self.root}/{joined}"

    def put(self, data: bytes, *parts: str) -> str:
        """Write one file, whole or not at all. Returns its SHA-256."""
        target = self.path(*parts)
        if self.local:
            partial = Path(self.path("tmp", uuid.uuid4().hex))
            partial.parent.mkdir(parents=True, exist_ok=True)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        else:
            self.fs.pipe_file(target, data)
        return hashlib.sha256(data).hexdigest()

    def put_file(self, source: Path, *parts: str) -> str:
        """Move a finished local file into the store, whole or not at all. Returns its SHA-256."""
        digest = digest_file(source)
        target = self.path(*parts)
        if self.local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            try:
                with source.open("rb") as file:
                    os.fsync(file.fileno())
                source.replace(target)
            except OSError:  # another file system: copy aside, then rename
                self.put(source.read_bytes(), *parts)
                source.unlink()
        else:
            self.fs.put_file(str(source), target)
            source.unlink()
        return digest

    def read(self, *parts: str) -> bytes:
        return cast(bytes, self.fs.cat_file(self.path(*parts)))

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """The JSON object in this file, or None if there is no such file."""
        try:
            return json.loads(self.read(*parts))
        except FileNotFoundError:
            return None

    def exists(self, *parts: str) -> bool:
        return bool(self.fs.exists(self.path(*parts)))

    def list(self, *parts: str) -> list[str]:
        """Names in a folder of the store, sorted; empty if there is none."""
        folder = self.path(*parts)
        self.fs.invalidate_cache()
        try:
            return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []

    def walk(self, *parts: str) -> list[str]:
        """Paths of all files below a folder, relative to it, sorted."""
        folder = self.path(*parts)
        self.fs.invalidate_cache()
        try:
            return sorted(str(name)[len(folder) + 1 :] for name in self.fs.find(folder))
        except FileNotFoundError:
            return []

    def size(self, *parts: str) -> int:
        return int(self.fs.size(self.path(*parts)))

    def scratch(self, artifact: str) -> Path:
        """A local folder for work under way on this artifact; in the store when that is local."""
        folder = self.workplace() / artifact
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def workplace(self) -> Path:
        """Where the folders for work under way are, if there are any."""
        if self.local:
            return Path(self.path("work"))
        home = Path(os.environ.get("FLYWHEEL_SCRATCH") or Path(tempfile.gettempdir()) / "flywheel")
        return home / hashlib.sha256(self.url.encode()).hexdigest()[:12]
