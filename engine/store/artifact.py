"""A finished artifact: an immutable folder of the store, and how its rows and files are read."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from engine.store.digest import digest_file
from engine.store.files import StoreFiles
from engine.store.parquet import open_parquet, read_parquet
from engine.store.schema import DATASETS
from engine.store.whole_file import whole_file
from engine.text.visible import visible

if TYPE_CHECKING:
    import datasets
    import polars as pl

MANIFEST = "manifest.json"


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
            with whole_file(target) as partial:
                self.store.fs.get_file(self.store.path("artifacts", self.id, name), str(partial))
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
        """A file of this artifact, whole."""
        return self.store.read("artifacts", self.id, name)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_file(name))

    def log(self, name: str) -> bytes | None:
        """A file under logs/ (metrics, timings), which is not part of the digest."""
        try:
            return self.read_file(f"logs/{name}")
        except FileNotFoundError:
            return None

    def verify(self) -> list[str]:
        """Names of files that are missing or differ from the manifest."""
        bad: list[str] = []
        for name, entry in self.manifest["files"].items():
            try:
                data = self.read_file(name)
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


def read_artifact(store: StoreFiles, artifact: str) -> Artifact | None:
    """The finished artifact in this folder, or None: no manifest, no artifact."""
    manifest = store.read_json("artifacts", artifact, MANIFEST)
    return Artifact(store, artifact, manifest) if manifest else None
