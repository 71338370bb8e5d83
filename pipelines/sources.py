"""Which files a `read` stage reads: globs, fsspec URLs and `stdlib:` paths, each with a name that survives moving them."""

from __future__ import annotations

import fnmatch
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import xxhash

from engine.errors import UserError, nearest

FORMATS = {
    ".txt": "text", ".text": "text", ".rst": "text",
    ".md": "markdown", ".markdown": "markdown",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet",
    ".py": "python", ".pyi": "python",
}  # fmt: skip
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
STDLIB = "stdlib:"
# Packages that were installed into the library's folder are not the standard library.
NOT_STDLIB = ("site-packages/*", "dist-packages/*", "*__pycache__/*")


@dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Attributes:
        name: its path below the fixed root of the glob that matched it; unique among the files of a stage.
        size: bytes on disk.
    """

    name: str
    fs: Any
    path: str
    size: int

    @property
    def suffix(self) -> str:
        """The suffix that tells the format: `.jsonl` of `rows.jsonl.gz`."""
        parts = [part.lower() for part in Path(self.name).suffixes]
        return parts[-2] if len(parts) > 1 and parts[-1] in COMPRESSION else (parts or [""])[-1]

    def open(self) -> Any:
        """A binary file with the decompressed bytes."""
        raw = self.fs.open(self.path, "rb")
        codec = COMPRESSION.get(Path(self.name).suffix.lower())
        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec) if codec else raw

    def digest(self) -> str:
        """128 bits of XXH3 over the bytes on disk; for an object store, the store's own ETag."""
        if tag := self.fs.info(self.path).get("ETag"):
            return f"etag:{str(tag).strip(chr(34))}"
        digest = xxhash.xxh3_128()
        with self.fs.open(self.path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return f"xxh3:{digest.hexdigest()}"


def find(paths: list[str], base: str | Path, exclude: Iterable[str] = ()) -> list[SourceFile]:
    """The files that these globs match, in the order of the globs and by name within one; each file once.

    Args:
        base: the folder that relative paths are relative to.
        exclude: globs over names; `*` also matches `/`.

    Raises:
        UserError: a glob matches nothing.
    """
    found: dict[str, SourceFile] = {}
    names: dict[str, int] = {}
    for pattern in paths:
        skip = list(exclude)
        if pattern.startswith(STDLIB):
            library = sysconfig.get_path("stdlib")
            fs, path, root = fsspec.filesystem("file"), f"{library}/{pattern.removeprefix(STDLIB)}", library
            skip += NOT_STDLIB
        else:
            url = pattern if "://" in pattern else str(Path(base).expanduser().absolute() / Path(pattern).expanduser())
            fs, path = cast(tuple[Any, str], fsspec.core.url_to_fs(url))  # pyright: ignore[reportAttributeAccessIssue]
            root = fixed_root(path)
        folder = bool(fs.isdir(path))
        if folder:
            root, path = path.rstrip("/"), path.rstrip("/") + "/**"
        matched: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
        matches = {p: i for p, i in matched.items() if i["type"] == "file"}
        taken = 0
        for full in sorted(matches):
            name = full[len(root) :].lstrip("/")
            if any(fnmatch.fnmatchcase(name, glob) for glob in skip):
                continue
            file = SourceFile(name, fs, full, int(matches[full].get("size") or 0))
            if folder and file.suffix not in FORMATS:
                continue
            taken += 1
            if full in found:
                continue
            # Two roots may hold the same relative path; the second keeps its content under a name of its own.
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                file = SourceFile(f"{name}#{names[name]}", fs, full, file.size)
            found[full] = file
        if not taken:
            raise _nothing(pattern, fs, path, root, len(matches), skip)
    return list(found.values())


def fixed_root(path: str) -> str:
    """The folder part of a glob before its first wildcard; the folder of a plain path."""
    magic = re.search(r"[*?\[{]", path)
    head = path[: magic.start()] if magic else path
    return head.rpartition("/")[0]


def _nothing(pattern: str, fs: Any, path: str, root: str, excluded: int, skip: list[str]) -> UserError:
    if excluded:
        return UserError(f"`{pattern}` matches {excluded} files, all left out by `exclude` ({', '.join(skip)}).")
    parent, wanted = root, path.removesuffix("/**").rpartition("/")[2]
    while parent and not fs.isdir(parent):  # the first folder that exists, and what in it is spelt most like ours
        parent, _, wanted = parent.rpartition("/")
    there = sorted(str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(parent or "/", detail=False))
    hint = nearest(wanted, there)
    if not hint:
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        hint = f" {parent} holds {', '.join(there[:5]) + more if there else 'nothing'}."
    return UserError(f"no file matches `{pattern}` (looked in {parent}).{hint}")
