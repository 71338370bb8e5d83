"""An artifact that is not finished yet: what its folder holds so far, and the manifest that ends it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import Damaged, UserError
from engine.store import cache, schema
from engine.store.artifact import CARD, MANIFEST, Artifact
from engine.store.digest import digest_json
from engine.store.files import LITTER, ListedFile
from engine.store.journal import Journal
from engine.store.known_digests import digest_of, digest_of_object, note_object, note_written
from engine.store.parquet import encode, read_parquet
from engine.store.range_reads import RangeFile, chunks
from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.store.versions import stated_digest

AT_ONCE = 4  # files that go to, or come from, a store elsewhere
WORTH_ASKING = 1 << 20  # bytes; of a larger file its digest is asked for before it is read


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

    def put_bytes(self, name: str, data: bytes) -> None:
        """Commit one file, such as a partition that was encoded before for an artifact of the same kind."""
        self._put(data, *name.split("/"))

    def read_part(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self._read("data", name, columns)

    def drop_part(self, name: str) -> None:
        """Take away one partition, and its rejected rows."""
        if not self.store.local:
            self.store.delete(("artifacts", self.artifact, one, f"{name}.parquet") for one in ("data", "rejected"))
            return
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
        self.store.put_file(source, "artifacts", self.artifact, *name.split("/"), kept=True)
        if self.store.local:
            note_written(Path(self.store.path("artifacts", self.artifact, name)), digest)

    def put_files(self, folder: Path) -> None:
        """Move all files below a local folder into this one, several at once where they go elsewhere."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._each(lambda file: self.put_file(file, file.relative_to(folder).as_posix()), files)

    def read_file(self, name: str) -> bytes:
        return self.store.read("artifacts", self.artifact, *name.split("/"))

    def rejected_place(self) -> str:
        """Where rejected rows are, to tell people."""
        return self.store.path("artifacts", self.artifact, "rejected")

    def discard(self) -> None:
        """Take away all that was committed, the manifest first."""
        if not self.store.local:
            self.store.delete([("artifacts", self.artifact, MANIFEST)])
            self.store.delete_folder("artifacts", self.artifact)
            return
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
        noted = self.journal.noted()

        def ours(name: str) -> bool:
            return name in noted or (self.store.local and name != CARD and not name.startswith("logs/"))

        def damaged(item: tuple[str, ListedFile | None]) -> bool:
            with self._opened(*item) as (entry, _):
                return entry["sha256"] not in noted.get(item[0], ())

        files = [item for item in self._files().items() if ours(item[0])]
        return [name for (name, _), bad in zip(files, self._each(damaged, files), strict=True) if bad]

    def contents(self) -> Contents:
        """What is there, each file read once; of a store elsewhere only what this run did not write or read before.

        Raises:
            Damaged: a file is not what was committed, or no table.
        """
        found, noted = Contents(), self.journal.noted() if self.journal else {}

        def look(item: tuple[str, ListedFile | None]) -> tuple[dict[str, Any], int, Counter[str]]:
            name, _ = item
            with self._opened(*item) as (entry, file):
                if name in noted and entry["sha256"] not in noted[name]:
                    raise Damaged(f"{self.artifact}: {name} is not what was committed.")
                try:
                    if name.startswith("rejected/"):
                        part = read_parquet(file, ["reason", "failed"])
                        return entry, sum(part.column("failed").to_pylist()), Counter(part.column("reason").to_pylist())
                    return {**entry, "rows": _rows(file, name)} if name.startswith("data/") else entry, 0, Counter()
                except (OSError, pa.ArrowException) as error:
                    raise Damaged(f"{self.artifact}: {name} is damaged ({error}).") from None

        files = [
            item
            for item in self._files().items()
            if item[0] not in (MANIFEST, CARD) and not item[0].startswith("logs/")
        ]
        for (name, _), (entry, failed, reasons) in zip(files, self._each(look, files), strict=True):
            found.files[name] = entry
            found.rows += entry.get("rows", 0)
            found.failed += failed
            found.reasons.update(reasons)
        return found

    def seal(self, manifest: dict[str, Any], card: str | None = None) -> Artifact:
        """Write the card, if there is one, and the manifest, which also knows the digests of the card and the logs (`beside`): they
        are no part of the artifact's digest. From now on it is an artifact."""
        if card is not None:
            self._put(card.encode(), CARD)
        beside: dict[str, Any] = {}
        for name, told in self._files().items():
            if name == CARD or name.startswith("logs/"):
                with self._opened(name, told) as (entry, _):
                    beside[name] = entry
        self._put(sealed({**manifest, "beside": beside}), MANIFEST)
        finished = self.store.get(self.artifact)
        assert finished is not None
        return finished

    def _files(self) -> dict[str, ListedFile | None]:
        """All files of the folder; of a store elsewhere what its listing tells of them."""
        if self.store.local:
            return dict.fromkeys(self.store.walk("artifacts", self.artifact))
        found = self.store.entries("artifacts", self.artifact)
        return {name: told for name, told in found.items() if not LITTER.fullmatch(name.rpartition("/")[2])}

    @contextlib.contextmanager
    def _opened(self, name: str, told: ListedFile | None) -> Generator[tuple[dict[str, Any], Any]]:
        """What a manifest knows of a file, and the file, opened to read."""
        parts = ("artifacts", self.artifact, *name.split("/"))
        place = self.store.path(*parts)
        if told is None:
            with self.store.fs.open(place, "rb") as file:
                yield {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest_of(file)}, file
            return
        digest = digest_of_object(place, told.version) if told.version else None
        asks = digest is None and self.store.s3 and told.size > WORTH_ASKING  # another machine may have written it
        if asks and (digest := stated_digest(self.store, told.version, *parts)):
            note_object(place, told.version, digest)
        if digest is None:
            digest, file = cache.take(told.size, lambda: chunks(self.store, told.size, *parts))
            note_object(place, told.version, digest)
        elif cache.holds(digest):
            file = cache.opened(digest, told.size, lambda: chunks(self.store, told.size, *parts))
        else:  # a look at some of it
            file = RangeFile(self.store, told.size, *parts)
        with file:
            yield {"bytes": told.size, "sha256": digest}, file

    def _each(self, do: Callable[[Any], Any], items: list[Any]) -> Iterable[Any]:
        """In this thread, or in several where each waits for a server."""
        if self.store.local or len(items) < 2:
            return list(map(do, items))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(do, items))

    def _put(self, data: bytes, *parts: str) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if self.journal:
            if self.store.local:  # another's journal is no place for who lost the lease
                self.store.fence("artifacts", self.artifact)
            self.journal.note("/".join(parts), digest)
        self.store.put(data, "artifacts", self.artifact, *parts, sha256=digest)
        if not self.store.local and parts[0] in ("data", "rejected"):
            cache.keep(digest, data)  # to be counted, and read by the next stage

    def _read(self, folder: str, name: str, columns: list[str] | None) -> pa.Table:
        place = ("artifacts", self.artifact, folder, f"{name}.parquet")
        if not self.store.local:
            return read_parquet(io.BytesIO(self.store.read(*place)), columns)
        with Path(self.store.path(*place)).open("rb") as file:
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
