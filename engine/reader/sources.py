"""Which files are read: paths, globs, fsspec URLs, `stdlib:` and datasets of a hub, each file with a name that survives
moving it. Links are followed; what is no data beside data is left out, and said."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import json
import lzma
import os
import re
import stat
import sysconfig
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import xxhash

from engine.errors import UserError, nearest
from engine.store.known_digests import digest_of, state

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
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
# What a compressed file begins with, whatever it is called.
MAGIC = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
MOST = 256 << 20  # bytes that a small file may unpack to, or that a file may have which has to be held whole
RATIO = (
    200  # times its size is what a large one may; texts and tables come to 5 or 20, to 100 where they repeat themselves
)
SPARSE = 1 << 30  # bytes from which on it is asked how much of a file is there
ROWS = ("jsonl", "json", "csv", "parquet", "arrow")  # formats that hold rows; in the others the file is the text
STDLIB = "stdlib:"
HUB = "hub:"
# What `datasets` and hubs keep beside the rows; cards are texts where there are no rows.
SAVED = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
CARDS = re.compile(r"(readme|license|licence|changelog|citation|notice|contributing)(\.\w+)?", re.IGNORECASE)
OTHERS = {
    stat.S_ISFIFO: "named pipe", stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISBLK: "device",
    stat.S_ISDIR: "folder",
}  # fmt: skip
SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test", "holdout": "test", "heldout": "test",
}  # fmt: skip
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
        return suffix_of(self.name)

    @property
    def split(self) -> str | None:
        """The split that its name tells, as `datasets` reads names: `test` of `data/test-00000-of-00001.parquet`."""
        for part in reversed(self.name.lower().split("/")):
            words = [word for word in re.split(r"[^a-z]+", part) if word in SPLITS]
            if words:
                return SPLITS[words[0]]
        return None

    def open(self, most: int = MOST) -> Any:
        """A binary file with the decompressed bytes.

        Args:
            most: what any file may unpack to; a larger one may unpack to `RATIO` times its size.
        """
        raw = self.fs.open(self.path, "rb")
        match codec := self._codec(raw):
            case None:
                return raw
            case "zstd":
                inner = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
            case _:
                inner = OPEN[codec](raw)
        return io.BufferedReader(_Unpacked(inner, unpacked_limit(self.size, most)), 1 << 17)

    @property
    def packed(self) -> bool:
        """Whether it is compressed."""
        with self.fs.open(self.path, "rb") as raw:
            return self._codec(raw) is not None

    def _codec(self, raw: Any) -> str | None:
        if named := COMPRESSION.get(Path(self.name).suffix.lower()):
            return named
        start = raw.read(6)
        raw.seek(0)
        return next((found for magic, found in MAGIC.items() if start.startswith(magic)), None)

    def digest(self) -> str:
        """128 bits of XXH3 over the bytes on disk; for an object store or a hub, its own name for the content."""
        info: dict[str, Any] = self.fs.info(self.path)
        if tag := info.get("ETag"):
            return f"etag:{str(tag).strip(chr(34))}"
        if blob := info.get("blob_id"):
            return f"blob:{blob}"
        try:
            if self.local:
                return f"xxh3:{digest_of(Path(self.path), 'xxh3')}"
            digest = xxhash.xxh3_128()
            with self.fs.open(self.path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{self.path} can't be read: {error.strerror or error}.") from None
        return f"xxh3:{digest.hexdigest()}"

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))


@dataclass(frozen=True)
class Range:
    """A part of a file of rows that can be read by itself.

    Attributes:
        begin, end: of JSON lines its bytes, of Parquet its row groups.
        first: the offset of its first record, as `Record` has it.
        size: bytes on disk.
    """

    begin: int
    end: int
    first: int
    size: int


class SourceWatch:
    """Tells when a file on this machine changes while it is read: nothing is to be kept of what was read then.

    Args:
        digests: of the files, as `SourceFile.digest` has them, when the plan looked.
    """

    def __init__(self, files: Sequence[SourceFile], digests: Sequence[str]) -> None:
        self._watched = {file: digest for file, digest in zip(files, digests, strict=True) if file.local}
        self._states: dict[SourceFile, str] = {}
        self.check(files)

    def check(self, files: Iterable[SourceFile]) -> None:
        """
        Raises:
            UserError: one of these files is not what it was.
        """
        for file in files:
            if file not in self._watched:
                continue
            try:
                now = state(Path(file.path))
            except OSError as error:
                raise UserError(f"{file.path} was there when it was looked at: {error.strerror or error}.") from None
            if now != self._states.get(file):  # somebody touched it, or nobody looked yet
                if file.digest() != self._watched[file]:
                    raise UserError(
                        f"{file.path} changed while it was read. Nothing was made of it; run again to read what is there now."
                    )
                self._states[file] = now


class TooLarge(OSError):
    """A file that unpacks to more than one of its size may: a few kB would fill the memory, or the disk."""


def unpacked_limit(size: int, most: int) -> int:
    """Bytes that a file of this many may unpack to."""
    return max(most, RATIO * size)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, up to a limit."""

    def __init__(self, inner: Any, limit: int) -> None:
        self.inner, self.limit, self.taken = inner, limit, 0
        self.take = getattr(inner, "read1", inner.read)  # what there is of a file that is cut off, and not nothing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.take(len(buffer))
        self.taken += len(data)
        if self.taken > self.limit:
            raise TooLarge(
                f"it unpacks to more than {self.limit:,} bytes, too much for a file of its size (`max_file_bytes`)"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.inner.close()
        super().close()


def _gunzipped(raw: Any) -> Any:
    return gzip.GzipFile(fileobj=raw)


OPEN: dict[str, Callable[[Any], Any]] = {"gzip": _gunzipped, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}


def suffix_of(name: str) -> str:
    parts = [part.lower() for part in Path(name).suffixes]
    return parts[-2] if len(parts) > 1 and parts[-1] in COMPRESSION else (parts or [""])[-1]


def find(
    paths: list[str], base: str | Path, exclude: Iterable[str] = (), say: Callable[[str], None] = lambda text: None
) -> list[SourceFile]:
    """The files that these globs match, in the order of the globs and by name within one; each file once.

    Args:
        base: the folder that relative paths are relative to.
        exclude: globs over names; `*` also matches `/`.
        say: is told what was left out of a folder, and why.

    Raises:
        UserError: a glob matches nothing.
    """
    found: dict[str, SourceFile] = {}
    names: dict[str, int] = {}
    skip = list(exclude)
    for pattern in paths:
        if pattern.startswith(HUB):
            for file in hub_files(pattern, base):
                if not any(fnmatch.fnmatchcase(file.name, glob) for glob in skip):
                    found.setdefault(file.path, file)
            continue
        left_out, literal = skip, ""
        if pattern.startswith(STDLIB):
            library = sysconfig.get_path("stdlib")
            fs, path, root = fsspec.filesystem("file"), f"{library}/{pattern.removeprefix(STDLIB)}", library
            left_out = [*skip, *NOT_STDLIB]
        else:
            url = pattern if "://" in pattern else str(Path(base).expanduser().absolute() / Path(pattern).expanduser())
            fs, path = cast(tuple[Any, str], fsspec.core.url_to_fs(url))  # pyright: ignore[reportAttributeAccessIssue]
            fs.invalidate_cache()  # what is there now
            here = f"{Path(base).expanduser().absolute()}/"
            literal = here if "://" not in pattern and path.startswith(here) else ""
            root = fixed_root(path, len(literal))
        folder = bool(fs.isdir(path))
        if folder:
            root, path = path.rstrip("/"), path.rstrip("/") + "/**"
        matches = _matches(fs, path, root, folder, say, literal)
        wanted = {
            full: size
            for full, size in sorted(matches.items())
            if not any(fnmatch.fnmatchcase(full[len(root) :].lstrip("/"), glob) for glob in left_out)
        }
        if folder:
            wanted = _data(fs, root, wanted, say)
        for full, size in wanted.items():
            if full in found:
                continue
            name = readable(full[len(root) :].lstrip("/"))
            # Two roots may hold the same relative path; the second keeps its content under a name of its own.
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name = f"{name}#{names[name]}"
            found[full] = SourceFile(name, fs, full, size)
        if not wanted:
            raise _nothing(pattern, fs, path, root, len(matches), left_out)
    return list(found.values())


def _matches(fs: Any, path: str, root: str, folder: bool, say: Callable[[str], None], literal: str) -> dict[str, int]:
    """The files that a glob matches, or all of a folder, with their sizes; on this machine links are followed, and what is hidden
    is matched by a glob that says so, as in a shell.

    Args:
        literal: the beginning of `path` that is a folder's name and no glob, whatever brackets are in it.
    """
    if "file" not in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        found: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
        return {p: int(i.get("size") or 0) for p, i in found.items() if i["type"] == "file"}
    if Path(path).exists() and not folder and (told := Path(path).stat()):
        if fault := _no_data(told):
            raise UserError(f"{readable(path)} can't be read: it is {fault}.")
        return {path: told.st_size}
    rest = path[len(literal) :]
    pattern = ".*" if folder else cast(str, fsspec.utils.glob_translate(rest))  # pyright: ignore[reportAttributeAccessIssue]
    shape = re.compile(re.escape(literal) + pattern, re.DOTALL)
    depth = None if "**" in path else path.count("/")
    sizes: dict[str, int] = {}
    for full in sorted(_walk(root or "/", depth, say)):
        hidden = "/." in full[len(root) :] and "/." not in path[len(root) :]
        if hidden or not shape.match(full):
            continue
        try:
            told = Path(full).stat()
        except OSError as error:
            say(
                f"{readable(full)} is left out: "
                + ("a link to nothing" if Path(full).is_symlink() else str(error.strerror))
            )
            continue
        if fault := _no_data(told):
            say(f"{readable(full)} is left out: {fault}")
        else:
            sizes[full] = told.st_size
    return sizes


def _no_data(told: os.stat_result) -> str | None:
    """Why a file can't be read as data."""
    if not stat.S_ISREG(told.st_mode):
        return f"no regular file but a {next((word for is_one, word in OTHERS.items() if is_one(told.st_mode)), 'thing of another sort')}"
    if told.st_size > SPARSE and told.st_blocks * 512 * RATIO < told.st_size:
        return f"a sparse file of {told.st_size:,} bytes, of which {told.st_blocks * 512:,} are there"
    return None


def _walk(root: str, depth: int | None, say: Callable[[str], None]) -> Iterator[str]:
    """Everything below a folder that is no folder. A link to a folder that one is already in is a loop, and not followed."""
    rest: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while rest:
        folder, above = rest.pop()
        try:
            told = Path(folder).stat()
            here = (told.st_dev, told.st_ino)
            if here in above:
                say(f"{readable(folder)} is left out: a link to a folder that holds it")
                continue
            entries = list(os.scandir(folder))
        except OSError as error:
            say(f"{readable(folder)} is left out: {error.strerror}")
            continue
        for entry in entries:
            try:
                inside = entry.is_dir()
            except OSError:  # a link to itself
                inside = False
            if not inside:
                yield entry.path
            elif depth is None or entry.path.count("/") < depth:
                rest.append((entry.path, above | {here}))


def readable(path: str) -> str:
    """A path as text: bytes of it that are not UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _data(fs: Any, root: str, files: dict[str, int], say: Callable[[str], None]) -> dict[str, int]:
    """What of a folder's files is data: not what is hidden, notes of `datasets`, cards beside rows, other formats."""
    kept: dict[str, int] = {}
    rows = any(FORMATS.get(suffix_of(full)) in ROWS and full.rpartition("/")[2] not in SAVED for full in files)
    shards = {folder: _shards(fs, f"{folder}/state.json") for full in files if (folder := full.rpartition("/")[0])}
    others: list[str] = []
    for full, size in files.items():
        inside, name = full[len(root) :].lstrip("/"), full.rpartition("/")[2]
        listed = shards[full.rpartition("/")[0]]
        hidden = any(part.startswith(".") for part in inside.split("/"))  # elsewhere
        unlisted = listed is not None and suffix_of(full) == ".arrow" and name not in listed  # a cache of `datasets`
        card = rows and CARDS.fullmatch(name) is not None
        if hidden or unlisted or card or name in SAVED or suffix_of(full) not in FORMATS:
            others.append(inside)
        else:
            kept[full] = size
    shown = [name for name in others if not name.startswith(".")]
    if shown and kept:
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        say(f"left out of {root}, being no data: {', '.join(shown[:4])}{more}")
    return kept


def _shards(fs: Any, state: str) -> list[str] | None:
    """The files that `datasets` says hold a saved dataset's rows."""
    try:
        told = json.loads(fs.cat_file(state))
        return [str(entry["filename"]) for entry in told["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


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


def fixed_root(path: str, literal: int = 0) -> str:
    """The folder part of a glob before its first wildcard, which is not among the first `literal` characters; the folder of a plain path."""
    magic = re.compile(r"[*?\[{]").search(path, literal)
    head = path[: magic.start()] if magic else path
    return head.rpartition("/")[0]


def _nothing(pattern: str, fs: Any, path: str, root: str, excluded: int, skip: list[str]) -> UserError:
    if excluded:
        return UserError(f"`{pattern}` matches {excluded} files, all left out by `exclude` ({', '.join(skip)}).")
    parent, wanted = root, path.removesuffix("/**").rpartition("/")[2]
    while parent and not fs.isdir(parent):  # the first folder that exists, and what in it is spelt most like ours
        parent, _, wanted = parent.rpartition("/")
    there = sorted(readable(str(name).rstrip("/").rpartition("/")[2]) for name in fs.ls(parent or "/", detail=False))
    there = [name for name in there if name != wanted]  # itself, which is no file that can be read
    hint = nearest(wanted, there)
    if not hint:
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        hint = f" {parent} holds {', '.join(there[:5]) + more if there else 'nothing'}."
    return UserError(f"no file matches `{readable(pattern)}` (looked in {readable(parent)}).{hint}")
