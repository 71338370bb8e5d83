"""Which files a `read` stage reads: globs, fsspec URLs, `stdlib:` paths and datasets of a hub, each with a name that
survives moving them."""

from __future__ import annotations

import fnmatch
import re
import sysconfig
import urllib.parse
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
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".pdf": "pdf",
    ".py": "python", ".pyi": "python",
    **dict.fromkeys((
        ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".hs", ".java", ".jl", ".js", ".jsx", ".kt", ".lua", ".ml", ".php",
        ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".tex", ".ts", ".tsx", ".zig",
    ), "code"),
}  # fmt: skip
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
STDLIB = "stdlib:"
HUB = "hub:"
SAVED = ("dataset_info.json", "state.json")  # what `datasets` notes beside the rows it saves
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
        """128 bits of XXH3 over the bytes on disk; for an object store or a hub, its own name for the content."""
        info: dict[str, Any] = self.fs.info(self.path)
        if tag := info.get("ETag"):
            return f"etag:{str(tag).strip(chr(34))}"
        if blob := info.get("blob_id"):
            return f"blob:{blob}"
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
        if pattern.startswith(HUB):
            for file in hub_files(pattern, base):
                if not any(fnmatch.fnmatchcase(file.name, glob) for glob in skip):
                    found.setdefault(file.path, file)
            continue
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
            if folder and (file.suffix not in FORMATS or name in SAVED):
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


def hub_files(name: str, base: str | Path) -> list[SourceFile]:
    """The data files of a Hugging Face dataset: `hub:NAME?config=C&split=S`, where NAME is one of the hub or a folder.

    Raises:
        UserError: no such dataset, configuration or split.
    """
    import datasets  # takes seconds, and most recipes read files

    place, _, query = name.removeprefix(HUB).partition("?")
    wanted = dict(urllib.parse.parse_qsl(query))
    if unknown := sorted(wanted.keys() - {"config", "split"}):
        raise UserError(f"`{name}`: `{unknown[0]}` is neither `config` nor `split`.{nearest(unknown[0], wanted)}")
    folder = Path(base) / Path(place).expanduser()
    try:
        builder = datasets.load_dataset_builder(str(folder) if folder.is_dir() else place, wanted.get("config"))
    except Exception as error:  # the network, the hub and the dataset's own files may all be wrong
        raise UserError(f"`{name}` can't be read as a dataset: {type(error).__name__}: {error}") from None
    splits: dict[str, list[str]] = {str(k): [str(f) for f in v] for k, v in (builder.config.data_files or {}).items()}
    split = wanted.get("split")
    if split is not None and split not in splits:
        raise UserError(
            f"`{name}`: there is no split `{split}`.{nearest(split, splits)} Splits: {', '.join(splits) or 'none'}."
        )
    made: list[SourceFile] = []
    for url in [url for key, urls in splits.items() if split in (None, key) for url in urls]:
        fs, path = cast(tuple[Any, str], fsspec.core.url_to_fs(url))  # pyright: ignore[reportAttributeAccessIssue]
        inside = Path(path).relative_to(folder.resolve()).as_posix() if folder.is_dir() else path.partition("@")[2]
        made.append(SourceFile(inside, fs, path, int(fs.info(path).get("size") or 0)))
    if not made:
        raise UserError(f"`{name}` has no data files.")
    return made


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
