"""The store: a folder or bucket of immutable artifacts, each named by what made it.

    artifacts/<stage kind>-<key>/   manifest.json (written last: no manifest, no artifact), data/*.parquet, rejected/*.parquet,
                                    model files, logs/ (timings, metrics: not part of the digest)
    runs/<recipe>.json              what each stage of the last run was, so that names resolve and `plan --why` can compare
    work/<stage kind>-<key>/        scratch of stages under way: checkpoints, output not yet complete (local disk)

Everything goes through fsspec, so the root may be a path or any URL it knows (`s3://bucket/prefix`). One primitive carries
all durability: `put`, which makes one file appear whole or not at all (a rename on disk, one PUT on an object store).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets
    import polars as pl

MANIFEST = "manifest.json"
KEY_LENGTH = 16  # hexadecimal digits of the key that appear in a folder's name


def default_url() -> str:
    """`$FLYWHEEL_STORE`, or `.flywheel` in the current folder."""
    return os.environ.get("FLYWHEEL_STORE") or ".flywheel"


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_json(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_parquet(file: Any) -> pq.ParquetFile:
    """A Parquet file, by a path or opened, to read with `use_threads=False`.

    Without Arrow's threads, neither those that decode nor those that read ahead: where a process ends while they start (`show` on
    a busy machine), pyarrow 26 aborts it, with everything printed already. With both, that struck one process in five.
    """
    return pq.ParquetFile(file, pre_buffer=False)


def read_parquet(file: Any, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, or these columns of it in this order."""
    table = open_parquet(file).read(columns=columns, use_threads=False)
    return table.select(columns) if columns else table


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

    def artifacts(self) -> Iterator[Artifact]:
        for name in self.list("artifacts"):
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
            folders = self.list("artifacts")
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


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. `id` is its folder's name, `manifest` what was recorded when it was finished."""

    store: Store
    id: str
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def kind(self) -> str:
        """One of `engine.store.schema.KINDS`."""
        return self.manifest["schema"]

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of all files that count."""
        return self.manifest["digest"]

    @property
    def rows(self) -> int:
        return self.manifest["rows"]

    def files(self, prefix: str = "") -> list[str]:
        return [name for name in self.manifest["files"] if name.startswith(prefix)]

    @cached_property
    def path(self) -> Path:
        """A local folder with this artifact's files: the store's own, or a checked copy of a remote one."""
        if "external" in self.manifest:
            return Path(self.manifest["external"])
        if self.store.local:
            return Path(self.store.path("artifacts", self.id))
        copy = self.store.scratch(f"inputs/{self.id}")
        for name, entry in self.manifest["files"].items():
            target = copy / name
            if target.exists() and digest_file(target) == entry["sha256"]:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            self.store.fs.get_file(self.store.path("artifacts", self.id, name), str(partial))
            partial.replace(target)
        return copy

    @property
    def location(self) -> str:
        """What `from_pretrained` and vLLM take: a local folder, or a hub name."""
        return self.manifest.get("hub") or str(self.path)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One data file of this artifact (Parquet, or Arrow IPC for token shards)."""
        if name.endswith(".arrow"):
            table = pa.ipc.open_file(pa.memory_map(str(self.path / name))).read_all()
            return table.select(columns) if columns else table
        with self._open(name) as file:
            return read_parquet(file, columns)

    def parts(self) -> list[str]:
        """Names of the data files, in order."""
        return self.files("data/")

    def batches(self, columns: list[str] | None = None, rows: int = 10_000) -> Iterator[pa.RecordBatch]:
        """Stream the rows in order, in batches of at most this many."""
        for name in self.parts():
            if name.endswith(".arrow"):
                for batch in pa.ipc.open_file(pa.memory_map(str(self.path / name))).read_all().to_batches(rows):
                    yield batch.select(columns) if columns else batch
                continue
            with self.parquet(name) as file:
                yield from file.iter_batches(rows, columns=columns, use_threads=False)

    @contextlib.contextmanager
    def parquet(self, name: str) -> Generator[pq.ParquetFile]:
        """One Parquet file of this artifact, to read parts of it."""
        with self._open(name) as file:
            yield open_parquet(file)

    def to_table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows. An artifact without rows gives an empty table with the kind's schema."""
        tables = [self.read_table(name, columns) for name in self.parts()]
        if tables:
            return pa.concat_tables(tables, promote_options="default")
        from engine.store.schema import DATASETS

        empty = DATASETS[self.kind].empty_table()
        return empty.select(columns) if columns else empty

    def to_polars(self) -> pl.DataFrame:
        import polars as pl

        return cast("pl.DataFrame", pl.from_arrow(self.to_table()))

    def to_datasets(self) -> datasets.Dataset:
        import datasets

        return datasets.Dataset(self.to_table())

    def rejected(self) -> pa.Table | None:
        """The rows that did not make it, with `reason` and `detail`; None if there are none."""
        tables = [self.read_table(name) for name in self.files("rejected/")]
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def log(self, name: str) -> bytes | None:
        """A file under logs/ (metrics, timings), which is not part of the digest."""
        try:
            return self.store.read("artifacts", self.id, "logs", name)
        except FileNotFoundError:
            return None

    def verify(self) -> list[str]:
        """Names of files that are missing or differ from the manifest."""
        bad: list[str] = []
        for name, entry in self.manifest["files"].items():
            try:
                data = self.store.read("artifacts", self.id, name)
            except FileNotFoundError:
                bad.append(name)
                continue
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                bad.append(name)
        return bad

    @contextlib.contextmanager
    def _open(self, name: str) -> Generator[Any]:
        with self.store.fs.open(self.store.path("artifacts", self.id, name), "rb") as file:
            yield file
