"""The store: a folder or bucket of immutable artifacts, each named by what made it.

    artifacts/<stage kind>-<key>/   manifest.json (written last: no manifest, no artifact), data/*.parquet, rejected/*.parquet,
                                    model files, logs/ (timings, metrics: not part of the digest)
    runs/<recipe>.json              what each stage of the last run was, so that names resolve and `plan --why` can compare
    work/<stage kind>-<key>/        scratch of stages under way: checkpoints, output not yet complete (local disk)

Everything goes through fsspec, so the root may be a path or any URL it knows (`s3://bucket/prefix`). One primitive carries
all durability: `put`, which makes one file appear whole or not at all (a rename on disk, one PUT on an object store).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import fsspec

from engine.errors import UserError, nearest
from engine.store.artifact import MANIFEST, Artifact
from engine.store.digest import digest_file

KEY_LENGTH = 16  # hexadecimal digits of the key that appear in a folder's name


def default_url() -> str:
    """`$FLYWHEEL_STORE`, or `.flywheel` in the current folder."""
    return os.environ.get("FLYWHEEL_STORE") or ".flywheel"


def open(name: str, store: str | None = None) -> Artifact:
    """Open an artifact by `RUN/STAGE`, stage name, key prefix or folder name.

    Args:
        store: URL of the store; else the default one.

    Raises:
        UserError: no such artifact, or the name fits several.
    """
    return Store(store).find(name)


class Store:
    """A root URL and the few operations on it. `Store(None)` is the default store."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        fs, root = cast(tuple[Any, str], fsspec.core.url_to_fs(self.url))  # pyright: ignore[reportAttributeAccessIssue]
        self.fs: Any = fs
        self.root = root.rstrip("/")
        self.local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))

    # -- files -------------------------------------------------------------------------------------------------------

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
        if self.local:
            folder = Path(self.path("work", artifact))
        else:
            home = Path(os.environ.get("FLYWHEEL_SCRATCH") or Path(tempfile.gettempdir()) / "flywheel")
            folder = home / hashlib.sha256(self.url.encode()).hexdigest()[:12] / artifact
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- artifacts ---------------------------------------------------------------------------------------------------

    def get(self, artifact: str) -> Artifact | None:
        """The finished artifact in this folder, or None: no manifest, no artifact."""
        manifest = self.read_json("artifacts", artifact, MANIFEST)
        return Artifact(self, artifact, manifest) if manifest else None

    def folders(self) -> list[str]:
        """Names of all artifacts, those under way too."""
        return self.list("artifacts")

    def begun(self, artifact: str) -> bool:
        """Whether anything of this artifact is there."""
        return self.exists("artifacts", artifact)

    def artifacts(self) -> Iterator[Artifact]:
        for name in self.folders():
            if artifact := self.get(name):
                yield artifact

    def run(self, name: str) -> dict[str, Any] | None:
        """The record of a recipe's last run: `{"stages": {name: {"artifact": ..., ...}}}`."""
        return self.read_json("runs", f"{name}.json")

    def runs(self) -> list[str]:
        """Names of the recipes that have run here."""
        return [name.removesuffix(".json") for name in self.list("runs") if name.endswith(".json")]

    def find(self, name: str) -> Artifact:
        """Open by `RUN/STAGE`, by stage name if one run has it, by folder name or the start of a key.

        Raises:
            UserError: nothing fits, or several do.
        """
        run, _, stage = name.rpartition("/")
        known: list[str] = []
        found: set[str] = set()
        for record_name in [run] if run else self.runs():
            for stage_name, entry in (self.run(record_name) or {"stages": {}})["stages"].items():
                known += [stage_name, f"{record_name}/{stage_name}"]
                if stage_name == stage and self.get(entry["artifact"]):
                    found.add(entry["artifact"])
        if not found and not run:
            folders = self.folders()
            known += folders
            found = {f for f in folders if f == name or f.rpartition("-")[2].startswith(name)}
        finished = [artifact for folder in sorted(found) if (artifact := self.get(folder))]
        if len(finished) == 1:
            return finished[0]
        if finished:
            raise UserError(f"`{name}` fits several artifacts: {', '.join(a.id for a in finished)}. Name one of them.")
        raise UserError(
            f"no finished artifact `{name}` in the store {self.url}.{nearest(name, known)} "
            "`flywheel status` lists what there is."
        )
