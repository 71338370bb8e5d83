"""A finished artifact: an immutable folder of the store, and how its rows and files are read."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import Damaged, UserError
from engine.store import cache
from engine.store.digest import digest_bytes, digest_folder, digest_json
from engine.store.files import StoreFiles
from engine.store.known_digests import digest_of
from engine.store.parquet import open_parquet, read_parquet
from engine.store.prefetch import fetch, soon
from engine.store.range_reads import chunks
from engine.store.schema import DATASETS, MODELS
from engine.text.visible import visible

if TYPE_CHECKING:
    import datasets
    import polars as pl

MANIFEST, CARD = "manifest.json", "README.md"
TAKEN_OVER = "taken over by"  # all that a manifest says where nothing is finished (`engine.store.lease`)
KEY_LENGTH = 16  # hexadecimal digits of the key that appear in a folder's name
# What manifests of before may lack, and what stands for it.
LATER: dict[str, Any] = {"timings": {}, "packages": {}, "identity": {}, "failed": 0}
# What every manifest has.
FIELDS = {
    "key": str, "digest": str, "schema": str, "rows": int, "files": dict, "inputs": dict, "stage": dict, "rejected": dict,
    "summary": dict, **{name: type(value) for name, value in LATER.items()},
}  # fmt: skip


def _cell(value: Any, width: int = 200) -> str:
    """A value as escaped text: a conversation turn by turn, everything else as JSON, cut to a width."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in cast("list[dict[str, str]]", value))
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return html.escape(text if len(text) <= width else text[: width - 1] + "…").replace("\n", "<br>")


@dataclass(frozen=True, repr=False)
class Artifact:
    """A finished artifact. `id` is its folder's name, `manifest` what was recorded when it was finished."""

    store: StoreFiles
    id: str
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        rows = f", {self.rows:,} rows" if self.rows else ""
        return f"<{self.kind} {self.id}{rows}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: what it is, what made it, its numbers and the first rows."""
        made = {"from": ", ".join(e["name"] for given in self.manifest["inputs"].values() for e in given)}
        facts = {"stage": self.manifest["stage"]["kind"], **made, **self.manifest["summary"]}
        lines = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{_cell(value)}</td></tr>" for name, value in facts.items() if value
        )
        page = f"<b>{html.escape(repr(self)[1:-1])}</b><table>{lines}</table>"
        if self.kind not in DATASETS or self.kind == "TokenBlock":
            return visible(page)
        first = next(self.batches(rows=5), None)
        rows = first.to_pylist()[:5] if first is not None else []
        shown = [name for name in (rows[0] if rows else {}) if any(row[name] not in (None, [], "") for row in rows)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
        body = "".join("<tr>" + "".join(f"<td>{_cell(row[name])}</td>" for name in shown) + "</tr>" for row in rows)
        return visible(f"{page}<table><tr>{head}</tr>{body}</table>")

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

    @property
    def name(self) -> str:
        """What people call it: what no stage made by its folder, file or repository, the rest by its id."""
        stage: dict[str, Any] = self.manifest.get("stage", {})
        if stage.get("kind") != "external":
            return self.id
        stated = str(stage["config"]["name"])
        if "hub" in self.manifest or stated.startswith("hub:"):
            return stated.removeprefix("hub:")
        place = Path(self.manifest.get("external") or stated)
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):  # a hub's cache
            return place.parent.parent.name.removeprefix("models--").replace("--", "/")
        return place.name.removesuffix(".gguf") or self.id

    def splits(self) -> dict[str, dict[str, int]]:
        """How many rows each split has in each data file; empty where the rows have none, or some have none (or no plain name)."""
        found: dict[str, dict[str, int]] = {}
        for name in self.parts() if self.kind in DATASETS and self.kind != "TokenBlock" else []:
            with self.parquet(name) as file:
                if "split" not in file.schema_arrow.names:
                    return {}
                counts = file.read(columns=["split"]).column("split").value_counts().to_pylist()
            for entry in counts:
                if not re.fullmatch(r"\w+", str(entry["values"] or "")):
                    return {}
                found.setdefault(str(entry["values"]), {})[name] = entry["counts"]
        return dict(sorted(found.items()))

    def files(self, prefix: str = "") -> list[str]:
        return [name for name in self.manifest["files"] if name.startswith(prefix)]

    @property
    def place(self) -> Path:
        """Where this artifact's files are, or their copy will be, looked at or not: to tell people."""
        if "external" in self.manifest:
            return Path(self.manifest["external"])
        if self.store.local:
            return Path(self.store.path("artifacts", self.id))
        return self.store.workplace() / cache.VIEWS / self.id

    @property
    def path(self) -> Path:
        """A local folder with this artifact's files: the store's own, or one of copies that stays while this process lives. Each file was
        looked at.

        Raises:
            Damaged: a file is not what was recorded of it. UserError: a model outside the store is another now.
        """
        if "external" in self.manifest:
            self._check_external()
        elif self.store.local:
            for name in self.manifest["files"]:
                with self.opened(name):
                    pass
            self._check_strangers()
        else:
            files = self.manifest["files"].items()
            cache.view(self.place, {name: (e["sha256"], partial(self._cached, name)) for name, e in files})
        return self.place

    def _cached(self, name: str) -> IO[bytes]:
        """A file of a store elsewhere, opened to read: it is on this machine from now on, for a while."""
        entry, parts = self._recorded.get(name), ("artifacts", self.id, *name.split("/"))
        if entry is None:
            return io.BytesIO(self.store.read(*parts))
        try:
            return cache.opened(entry["sha256"], entry["bytes"], lambda: chunks(self.store, entry["bytes"], *parts))
        except FileNotFoundError:
            raise self.damaged(name, "it is missing") from None
        except (Damaged, OSError) as error:
            if (size := self.store.size(*parts)) != entry["bytes"]:
                raise self.damaged(name, f"it has {size:,} bytes instead of {entry['bytes']:,}") from None
            if isinstance(error, OSError):  # of the server or the way to it
                raise
            raise self.damaged(name, "its bytes are not those that were written") from None

    def _check_external(self) -> None:
        folder = self.place
        if folder.is_dir() and digest_json(digest_folder(folder)) == self.key:
            return
        gone = "is gone" if not folder.exists() else "changed after this run was planned, or since it was recorded"
        raise UserError(f"{folder} {gone} (as {self.id}). Nothing was made of it; run again to read what is there now.")

    def _check_strangers(self) -> None:
        """Whoever is given a folder may read a file that was put there since."""
        known = {*self.manifest["files"], MANIFEST, CARD}
        for name in self.store.walk("artifacts", self.id):
            if name not in known and not name.startswith("logs/"):
                raise self.damaged(name, "it is not of this artifact")

    @property
    def location(self) -> str:
        """What `from_pretrained` and vLLM take: a local folder (see `path`), or a hub name."""
        return self.manifest.get("hub") or str(self.path)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One data file of this artifact (Parquet, or Arrow IPC for token shards).

        Raises:
            Damaged: it is not what was recorded of it. So do all that read rows or files.
        """
        if name.endswith(".arrow"):
            table = self._arrow(name)
            return table.select(columns) if columns else table
        with self.opened(name) as file:
            return read_parquet(file, columns)

    def parts(self) -> list[str]:
        """Names of the data files, in order."""
        return self.files("data/")

    def batches(self, columns: list[str] | None = None, rows: int = 10_000) -> Iterator[pa.RecordBatch]:
        """Stream the rows in order, in batches of at most this many."""
        for name in self.parts():
            if name.endswith(".arrow"):
                for batch in self._arrow(name).to_batches(rows):
                    yield batch.select(columns) if columns else batch
                continue
            with self.parquet(name) as file:
                yield from file.iter_batches(rows, columns=columns, use_threads=False)

    def _arrow(self, name: str) -> pa.Table:
        with self.opened(name) as file:  # a copy may be taken away: it is mapped as it is open
            path = file.name if self.store.local else f"/dev/fd/{file.fileno()}"
            return pa.ipc.open_file(pa.memory_map(path)).read_all()

    @contextlib.contextmanager
    def parquet(self, name: str) -> Generator[pq.ParquetFile]:
        """One Parquet file of this artifact, to read parts of it."""
        with self.opened(name) as file:
            yield open_parquet(file)

    def to_table(self, columns: list[str] | None = None) -> pa.Table:
        """All rows. An artifact without rows gives an empty table with the kind's schema."""
        tables = [self.read_table(name, columns) for name in self.parts()]
        if tables:
            return pa.concat_tables(tables, promote_options="default")
        empty = DATASETS[self.kind].empty_table()
        return empty.select(columns) if columns else empty

    def to_polars(self) -> pl.DataFrame:
        import polars as pl

        return cast("pl.DataFrame", pl.from_arrow(self.to_table()))

    def to_datasets(self) -> datasets.Dataset:
        import datasets

        return datasets.Dataset(self.to_table())

    def rejected_parts(self) -> list[str]:
        """Names of the files with rows that did not make it."""
        return self.files("rejected/")

    def rejected(self) -> pa.Table | None:
        """The rows that did not make it, with `reason` and `detail`; None if there are none."""
        tables = [self.read_table(name) for name in self.rejected_parts()]
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def read_file(self, name: str) -> bytes:
        """A file of this artifact, whole.

        Raises:
            Damaged: it is not what was recorded of it, or gone. FileNotFoundError: nothing was recorded of it, and it is not there.
        """
        if not self.store.local:
            with self._cached(name) as file:
                return file.read()
        try:
            data = self.store.read("artifacts", self.id, name)
        except FileNotFoundError:
            if name in self._recorded:
                raise self.damaged(name, "it is missing") from None
            raise
        except OSError as error:
            raise self.damaged(name, f"it can't be read: {error.strerror or error}") from None
        self._compare(name, hashlib.sha256(data).hexdigest(), len(data))
        return data

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_file(name))

    def log(self, name: str) -> bytes | None:
        """A file under logs/ (metrics, timings), which is not part of the digest; None if there is none."""
        try:
            return self.read_file(f"logs/{name}")
        except FileNotFoundError:
            return None

    def metrics(self) -> pl.DataFrame | None:
        """What the stage reported while it worked, a row a `step`: loss, learning rate, memory, ...; None if nothing."""
        import polars as pl

        data = self.log("metrics.parquet")
        return pl.read_parquet(io.BytesIO(data)) if data else None

    # -- whether it is whole -----------------------------------------------------------------------------------------

    @property
    def _recorded(self) -> dict[str, Any]:
        """What the manifest knows of each file, those that are not part of the digest among them."""
        return {**self.manifest["files"], **self.manifest.get("beside", {})}

    def incomplete(self) -> str | None:
        """Which file is missing or has another size, in words; None if there is none. Nothing is read."""
        if "external" in self.manifest:
            return None if self.place.is_dir() else f"{self.place} is gone"
        found = self._missing()
        return f"{found[0]} {found[1].removeprefix('it ')}" if found else None

    def check_complete(self) -> None:
        """
        Raises:
            Damaged: a file is missing or has another size (`incomplete`).
        """
        if "external" not in self.manifest and (found := self._missing()):
            raise self.damaged(*found)

    def _missing(self) -> tuple[str, str] | None:
        """A file that is missing or has another size, and what is wrong with it."""
        sizes = self.store.sizes("artifacts", self.id, names=list(self.manifest["files"]))
        for name, entry in self.manifest["files"].items():
            size = sizes.get(name)
            if size is None:
                return name, "it is missing"
            if size != entry["bytes"]:
                return name, f"it has {size:,} bytes instead of {entry['bytes']:,}"
        return None

    def verify(self) -> list[str]:
        """Names of files that are missing or differ from the manifest; every byte is read, whatever was looked at before. Of a model
        outside the store, its folder.
        """
        if "external" in self.manifest:
            folder = self.place
            digests = {p.relative_to(folder).as_posix(): digest_bytes(p) for p in folder.rglob("*") if p.is_file()}
            return [] if digest_json(digests) == self.key else [str(folder)]
        bad: list[str] = []
        for name, entry in self._recorded.items():
            try:
                if self._digest(name, entry["bytes"]) != entry["sha256"]:
                    bad.append(name)
            except OSError:
                bad.append(name)
        return bad

    def _digest(self, name: str, size: int) -> str:
        parts = ("artifacts", self.id, *name.split("/"))
        if self.store.local:
            return digest_bytes(Path(self.store.path(*parts)))
        sha256 = hashlib.sha256()
        for chunk in chunks(self.store, size, *parts):
            sha256.update(chunk)
        return sha256.hexdigest()

    def damaged(self, name: str, why: str) -> Damaged:
        """What to raise where a file is not what was recorded of it."""
        return Damaged(f"{self.id}: {name} is damaged ({why}). `flywheel repair {self.id}` makes it anew.")

    def _compare(self, name: str, sha256: str, size: int) -> None:
        entry = self._recorded.get(name)
        if entry is None or entry["sha256"] == sha256:
            return
        if entry["bytes"] != size:
            raise self.damaged(name, f"it has {size:,} bytes instead of {entry['bytes']:,}")
        raise self.damaged(name, "its bytes are not those that were written")

    @contextlib.contextmanager
    def opened(self, name: str) -> Generator[Any]:
        """A file, looked at: its bytes were compared with the manifest in this run, and nobody touched it since. Of a store elsewhere it
        is fetched, and so are the next ones where a process reads one after the other.
        """
        if not self.store.local:
            for next_ in soon(self.store.path("artifacts", self.id), self.parts, name):
                fetch(lambda name=next_: self._cached(name).close())
            with self._cached(name) as file:
                yield file
            return
        with contextlib.ExitStack() as opened:
            try:
                file = opened.enter_context(Path(self.store.path("artifacts", self.id, name)).open("rb"))
                self._compare(name, digest_of(file), os.fstat(file.fileno()).st_size)
            except (FileNotFoundError, NotADirectoryError):
                raise self.damaged(name, "it is missing") from None
            except OSError as error:
                raise self.damaged(name, f"it can't be read: {error.strerror or error}") from None
            try:
                yield file
            except OSError as error:
                if "CRC checksum" not in str(error) and error.errno != errno.EIO:
                    raise
                raise self.damaged(name, str(error)) from None


def read_artifact(store: StoreFiles, artifact: str) -> Artifact | None:
    """The finished artifact in this folder, or None: no manifest, no artifact.

    Raises:
        Damaged: there is a manifest, and it is not what was written.
    """
    manifest = store.read_sealed("artifacts", artifact, MANIFEST)
    if manifest is None or TAKEN_OVER in manifest:
        return None
    for name, value in LATER.items():
        manifest.setdefault(name, copy.copy(value))
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise Damaged(f"artifacts/{artifact}/{MANIFEST} is damaged: `{name}` is {_cell(manifest.get(name), 40)}.")
    if manifest["schema"] not in (*DATASETS, *MODELS) or not artifact.endswith("-" + manifest["key"][:KEY_LENGTH]):
        raise Damaged(f"artifacts/{artifact}/{MANIFEST} is damaged: it is of another artifact.")
    manifest.setdefault("kind", "dataset" if manifest["schema"] in DATASETS else "model")
    return Artifact(store, artifact, manifest)
