"""An artifact that is not finished yet: what its folder holds so far, and the manifest that ends it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import UserError
from engine.store import schema
from engine.store.artifact import MANIFEST, Artifact
from engine.store.digest import digest_json
from engine.store.parquet import encode, read_parquet
from engine.store.sealed_json import sealed
from engine.store.store import Store

CARD = "README.md"


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

    def parts(self) -> set[str]:
        """Names of the partitions that are there, whole."""
        return self._parquet("data")

    def put_part(self, name: str, table: pa.Table, kind: str) -> None:
        """Commit one partition, cast to the schema of its kind."""
        self._put(encode(schema.conform(table, kind)), "data", f"{name}.parquet")

    def read_part(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self._read("data", name, columns)

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
        self.store.put_file(source, "artifacts", self.artifact, *name.split("/"))

    def read_file(self, name: str) -> bytes:
        return self.store.read("artifacts", self.artifact, *name.split("/"))

    def rejected_place(self) -> str:
        """Where rejected rows are, to tell people."""
        return self.store.path("artifacts", self.artifact, "rejected")

    def discard(self) -> None:
        """Take away all that was committed."""
        if self.store.exists("artifacts", self.artifact):
            self.store.fs.rm(self.store.path("artifacts", self.artifact), recursive=True)

    def contents(self) -> Contents:
        """Read what is there, once, whole."""
        found = Contents()
        for name in self.store.walk("artifacts", self.artifact):
            if name in (MANIFEST, CARD) or name.startswith("logs/"):
                continue
            with self.store.fs.open(self.store.path("artifacts", self.artifact, name), "rb") as file:
                found.files[name] = {
                    "bytes": self.store.size("artifacts", self.artifact, name),
                    "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                }
                file.seek(0)
                if name.startswith("rejected/"):
                    part = read_parquet(file, ["reason", "failed"])
                    found.failed += sum(part.column("failed").to_pylist())
                    found.reasons.update(part.column("reason").to_pylist())
                elif name.startswith("data/"):
                    found.rows += _rows(file, name)
        return found

    def seal(self, manifest: dict[str, Any], card: str | None = None) -> Artifact:
        """Write the card, if there is one, and the manifest: from now on it is an artifact."""
        if card is not None:
            self._put(card.encode(), CARD)
        self._put(sealed(manifest), MANIFEST)
        finished = self.store.get(self.artifact)
        assert finished is not None
        return finished

    def _put(self, data: bytes, *parts: str) -> None:
        self.store.put(data, "artifacts", self.artifact, *parts)

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
