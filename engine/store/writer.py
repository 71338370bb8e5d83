"""An artifact that is not finished yet: what its folder holds so far, and the manifest that ends it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import Damaged, UserError
from engine.store import schema
from engine.store.artifact import CARD, MANIFEST, Artifact
from engine.store.digest import digest_json
from engine.store.journal import Journal
from engine.store.known_digests import digest_of, note_written
from engine.store.parquet import encode, read_parquet
from engine.store.sealed_json import sealed
from engine.store.store import Store


@dataclass
class Contents:
    """What a folder holds: digests of the files that count, rows, and rejected rows by reason."""

    files: dict[str, dict[str, Any]] = field(default_factory=lambda: {})
    rows: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=lambda: Counter())

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    @property
    def digest(self) -> str:
        return digest_json({name: entry["sha256"] for name, entry in self.files.items()})


@dataclass(frozen=True)
class ArtifactWriter:
    """Writes one artifact's folder. Every file appears whole or not at all; the manifest comes last."""

    store: Store
    artifact: str
    journal: Journal | None = None

    def parts(self) -> set[str]:
        """Names of the partitions that are there, whole."""
        return self._parquet("data")

    def put_part(self, name: str, table: pa.Table, kind: str) -> None:
        """Commit one partition, cast to the schema of its kind."""
        self._put(encode(schema.conform(table, kind)), "data", f"{name}.parquet")

    def read_part(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self._read("data", name, columns)

    def drop_part(self, name: str) -> None:
        """Take away one partition, and its rejected rows."""
        for folder in ("data", "rejected"):
            if self.store.exists("artifacts", self.artifact, folder, f"{name}.parquet"):
                self.store.fs.rm_file(self.store.path("artifacts", self.artifact, folder, f"{name}.parquet"))

    def rejected_parts(self) -> set[str]:
        return self._parquet("rejected")

    def put_rejected(self, name: str, table: pa.Table) -> None:
        """Keep rows that did not make it, with `reason`; `detail` and `failed` are added where they are missing."""
        self._put(encode(_rejected(table)), "rejected", f"{name}.parquet")

    def read_rejected(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self._read("rejected", name, columns)

    def put_log(self, name: str, data: bytes) -> None:
        """Keep a file that may differ from run to run: no part of the digest."""
        self._put(data, "logs", name)

    def put_file(self, source: Path, name: str) -> None:
        """Move a finished local file into the folder."""
        digest = digest_of(source)
        if self.journal:
            self.journal.note(name, digest)
        self.store.put_file(source, "artifacts", self.artifact, *name.split("/"))
        if self.store.local:
            note_written(Path(self.store.path("artifacts", self.artifact, name)), digest)

    def read_file(self, name: str) -> bytes:
        return self.store.read("artifacts", self.artifact, *name.split("/"))

    def rejected_place(self) -> str:
        """Where rejected rows are, to tell people."""
        return self.store.path("artifacts", self.artifact, "rejected")

    def discard(self) -> None:
        """Take away all that was committed, the manifest first."""
        if self.store.exists("artifacts", self.artifact, MANIFEST):
            self.store.fs.rm_file(self.store.path("artifacts", self.artifact, MANIFEST))
        if self.store.exists("artifacts", self.artifact):
            self.store.fs.rm(self.store.path("artifacts", self.artifact), recursive=True)

    def damage(self) -> list[str]:
        """What is there and is not what was committed; nothing where no journal was kept. In a remote store another machine may have
        committed it.
        """
        if self.journal is None:
            return []
        noted, found = self.journal.noted(), list[str]()
        for name in self.store.walk("artifacts", self.artifact):
            with self.store.fs.open(self.store.path("artifacts", self.artifact, name), "rb") as file:
                ours = name in noted or (self.store.local and name != CARD and not name.startswith("logs/"))
                if ours and self._entry(name, file)["sha256"] not in noted.get(name, ()):
                    found.append(name)
        return found

    def contents(self) -> Contents:
        """What is there, each file read once.

        Raises:
            Damaged: a file is not what was committed, or no table.
        """
        found, noted = Contents(), self.journal.noted() if self.journal else {}
        for name in self.store.walk("artifacts", self.artifact):
            if name in (MANIFEST, CARD) or name.startswith("logs/"):
                continue
            with self.store.fs.open(self.store.path("artifacts", self.artifact, name), "rb") as file:
                entry = found.files[name] = self._entry(name, file)
                if name in noted and entry["sha256"] not in noted[name]:
                    raise Damaged(f"{self.artifact}: {name} is not what was committed.")
                try:
                    if name.startswith("rejected/"):
                        part = read_parquet(file, ["reason", "failed"])
                        found.failed += sum(part.column("failed").to_pylist())
                        found.reasons.update(part.column("reason").to_pylist())
                    elif name.startswith("data/"):
                        found.rows += _rows(file, name)
                except (OSError, pa.ArrowException) as error:
                    raise Damaged(f"{self.artifact}: {name} is damaged ({error}).") from None
        return found

    def seal(self, manifest: dict[str, Any], card: str | None = None) -> Artifact:
        """Write the card, if there is one, and the manifest, which also knows the digests of the card and the logs (`beside`): they
        are no part of the artifact's digest. From now on it is an artifact."""
        if card is not None:
            self._put(card.encode(), CARD)
        beside: dict[str, Any] = {}
        for name in self.store.walk("artifacts", self.artifact):
            if name == CARD or name.startswith("logs/"):
                with self.store.fs.open(self.store.path("artifacts", self.artifact, name), "rb") as file:
                    beside[name] = self._entry(name, file)
        self._put(sealed({**manifest, "beside": beside}), MANIFEST)
        finished = self.store.get(self.artifact)
        assert finished is not None
        return finished

    def _entry(self, name: str, file: Any) -> dict[str, Any]:
        """What a manifest knows of a file that is open."""
        if self.store.local:
            size, digest = os.fstat(file.fileno()).st_size, digest_of(file)
        else:
            size, digest = (
                self.store.size("artifacts", self.artifact, name),
                hashlib.file_digest(file, "sha256").hexdigest(),
            )
            file.seek(0)
        return {"bytes": size, "sha256": digest}

    def _put(self, data: bytes, *parts: str) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if self.journal:
            if self.store.local:  # another's journal is no place for who lost the lease
                self.store.fence("artifacts", self.artifact)
            self.journal.note("/".join(parts), digest)
        self.store.put(data, "artifacts", self.artifact, *parts, sha256=digest)

    def _read(self, folder: str, name: str, columns: list[str] | None) -> pa.Table:
        path = self.store.path("artifacts", self.artifact, folder, f"{name}.parquet")
        with self.store.fs.open(path, "rb") as file:
            return read_parquet(file, columns)

    def _parquet(self, folder: str) -> set[str]:
        names = self.store.list("artifacts", self.artifact, folder)
        return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def _rows(file: Any, name: str) -> int:
    if name.endswith(".arrow"):
        reader = pa.ipc.open_file(file)
        return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    return pq.read_metadata(file).num_rows


def _rejected(table: pa.Table) -> pa.Table:
    if "reason" not in table.column_names:
        raise UserError("rejected rows need a `reason` column")
    for column in schema.REJECTED:
        if column.name not in table.column_names:
            default = _false(len(table)) if column.type == pa.bool_() else pa.nulls(len(table), column.type)
            table = table.append_column(column, default)
    return table


def _false(count: int) -> pa.Array:  # `pa.array` would import pandas
    return pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(bytes(count // 8 + 1))])
