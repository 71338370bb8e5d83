"""The files of a store, by fsspec: the root may be a path or any URL it knows (`s3://bucket/prefix`).

One primitive carries all durability: `put`, which makes one file appear whole or not at all (a rename on disk, one PUT on an
object store), and last: on disk its bytes and the folders that name it are synced before `put` returns.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import fsspec

from engine.errors import Damaged, UserError
from engine.redaction import exposed
from engine.shortage import in_words
from engine.store.known_digests import note_written
from engine.store.sealed_json import unsealed
from engine.store.whole_file import make_folder, sync, whole_file

# What systems leave in folders: Finder, Windows, NFS (a file that was removed while somebody had it open).
LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")


def default_url() -> str:
    """`$FLYWHEEL_STORE`, or `.flywheel` in the current folder."""
    return os.environ.get("FLYWHEEL_STORE") or ".flywheel"


class Fence(Protocol):
    """The right to write one artifact (`engine.store.lease`)."""

    @property
    def artifact(self) -> str: ...
    def check(self) -> None: ...


@dataclass(frozen=True)
class ListedFile:
    """A file of a store elsewhere as a listing tells it.

    Attributes:
        version: what changes when the file does (an ETag); empty where there is no such thing.
        modified: when it was written, in seconds since 1970.
    """

    size: int
    version: str
    modified: float


class StoreFiles:
    """A root URL and the few operations on its files."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        if told := exposed(self.url):  # it stands in records and messages
            raise UserError(
                f"the store's URL holds {told}. Give it by the environment (AWS_ACCESS_KEY_ID, ...), or by fsspec's own files."
            )
        self.fs, root = _file_system(self.url)
        self.root = root.rstrip("/")
        protocols = self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,)
        self.local, self.s3 = "file" in protocols, "s3" in protocols
        self.damage: dict[str, str] = {}  # an artifact's folder, or `runs/NAME.json` -> what is wrong with its record
        self.lease: Fence | None = None

    def fence(self, *parts: str) -> None:
        """Called at the moment in which a file appears: who has lost an artifact's lease must not write into it.

        Raises:
            StageFailed: another has taken over.
        """
        if self.lease and parts[:2] == ("artifacts", self.lease.artifact):
            self.lease.check()

    def path(self, *parts: str) -> str:
        """A path inside the store.

        Raises:
            UserError: a part would leave it.
        """
        joined = "/".join(parts)
        if joined.startswith("/") or ".." in joined.split("/"):
            raise UserError(f"`{joined}` would leave the store {self.url}.")
        return f"{self.root}/{joined}"

    def put(self, data: bytes, *parts: str, sha256: str | None = None) -> str:
        """Write one file, whole or not at all, to last. Returns its SHA-256.

        Args:
            sha256: of the data, where it is known.

        Raises:
            StageFailed: the disk is full, or fails. UserError: it may not be written.
        """
        target, digest = self.path(*parts), sha256 or hashlib.sha256(data).hexdigest()
        if not self.local:
            self.fs.pipe_file(target, data)
            return digest
        with in_words(target):
            owner = parts[min(1, len(parts) - 1)]
            partial = Path(self.path("tmp", f"{owner}.{uuid.uuid4().hex}"))
            make_folder(partial.parent)
            make_folder(Path(target).parent)
            try:
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self.fence(*parts)
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            sync(Path(target).parent)
        note_written(Path(target), digest)
        return digest

    def clear_begun(self, artifact: str) -> None:
        """Take away what writes of an artifact left that did not end, as they were killed; for whoever has its lease."""
        if self.local:
            for partial in Path(self.path("tmp")).glob(f"{artifact}.*"):
                partial.unlink(missing_ok=True)

    def put_file(self, source: Path, *parts: str) -> None:
        """Move a finished local file into the store, whole or not at all, to last.

        Raises:
            StageFailed: the disk is full, or fails. UserError: it may not be written.
        """
        target = self.path(*parts)
        self.fence(*parts)
        if not self.local:
            self.fs.put_file(str(source), target)
            source.unlink()
            return
        with in_words(target):
            make_folder(Path(target).parent)
            sync(source)
            try:
                source.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with whole_file(Path(target)) as partial:  # another file system: copy aside, then rename
                    shutil.copyfile(source, partial)
                source.unlink()
                return
            sync(Path(target).parent)

    def read(self, *parts: str) -> bytes:
        """A file, whole.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            return cast(bytes, self.fs.cat_file(self.path(*parts)))
        except NotADirectoryError as error:  # a file stands where a folder should
            raise FileNotFoundError(*error.args) from None

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """The JSON object in this file, or None if there is no such file."""
        try:
            return json.loads(self.read(*parts))
        except FileNotFoundError:
            return None

    def read_sealed(self, *parts: str) -> dict[str, Any] | None:
        """The record in this file (`engine.store.sealed_json`), or None if there is no such file.

        Raises:
            Damaged: it is not what was written, or can't be read.
        """
        name = "/".join(parts)
        try:
            return unsealed(self.read(*parts), name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not self.local:  # a server or the way to it, and not the file
                raise
            raise Damaged(f"{name} can't be read: {error.strerror or error}.") from None

    def exists(self, *parts: str) -> bool:
        """Whether there is a file of this name, or anything below it."""
        return bool(self.fs.exists(self.path(*parts)))

    def read_range(self, begin: int, end: int, *parts: str) -> bytes:
        """Bytes `begin` to `end` of a file elsewhere; fewer, where it is shorter.

        Raises:
            FileNotFoundError: there is none. OSError: it is not as long as `begin`.
        """
        return cast(bytes, self.fs.cat_file(self.path(*parts), start=begin, end=end)) if begin < end else b""

    def entries(self, *parts: str) -> dict[str, ListedFile]:
        """All files below a folder of a store elsewhere, by their path from it; empty if there is none."""
        folder = self.path(*parts)
        if self.s3:
            return {name: ListedFile(*told) for name, told in sorted(self.fs.entries(folder).items())}
        self.fs.invalidate_cache()
        try:
            found = cast(dict[str, dict[str, Any]], self.fs.find(folder, detail=True))
        except FileNotFoundError:
            return {}
        return {name[len(folder) + 1 :]: _entry(facts) for name, facts in sorted(found.items())}

    def delete(self, places: Iterable[tuple[str, ...]]) -> None:
        """Take away files of a store elsewhere; those that are gone are no error."""
        paths = [self.path(*parts) for parts in places]
        if self.s3:
            self.fs.delete(paths)
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def delete_folder(self, *parts: str) -> None:
        """Take away all files below a folder of a store elsewhere."""
        self.delete((*parts, name) for name in self.entries(*parts))

    def list(self, *parts: str) -> list[str]:
        """Names in a folder of the store, sorted; empty if there is none. What systems leave in folders is left out."""
        folder = self.path(*parts)
        if self.s3:
            return sorted(name for name in self.fs.names(folder) if not LITTER.fullmatch(name))
        self.fs.invalidate_cache()
        try:
            names = [str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.fs.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if not LITTER.fullmatch(name))

    def walk(self, *parts: str) -> list[str]:
        """Paths of all files below a folder, relative to it, sorted. What systems leave in folders is left out."""
        folder = self.path(*parts)
        if not self.local:
            return [name for name in self.entries(*parts) if not LITTER.fullmatch(name.rpartition("/")[2])]
        try:
            names = [str(name)[len(folder) + 1 :] for name in self.fs.find(folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if not LITTER.fullmatch(name.rpartition("/")[2]))

    def size(self, *parts: str) -> int:
        return int(self.fs.size(self.path(*parts)))

    def sizes(self, *parts: str, names: Iterable[str]) -> dict[str, int]:
        """Bytes of files below a folder, of those that are there."""
        if not self.local:
            return {name: told.size for name, told in self.entries(*parts).items()}
        found: dict[str, int] = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[name] = self.size(*parts, *name.split("/"))
        return found

    def scratch(self, artifact: str) -> Path:
        """A local folder for work under way on this artifact; in the store when that is local."""
        folder = self.workplace() / artifact
        with in_words(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def workplace(self) -> Path:
        """Where the folders for work under way are, if there are any."""
        if self.local:
            return Path(self.path("work"))
        return scratch_home() / hashlib.sha256(self.url.encode()).hexdigest()[:12]


def scratch_home() -> Path:
    """The folder on this machine for work on stores that are elsewhere: `$FLYWHEEL_SCRATCH`, or one in the temporary folder."""
    return Path(os.environ.get("FLYWHEEL_SCRATCH") or Path(tempfile.gettempdir()) / "flywheel")


def _file_system(url: str) -> tuple[Any, str]:
    """A URL's file system and the path in it.

    Raises:
        UserError: what speaks its protocol is not installed, or nothing does.
    """
    try:
        if url.startswith(("s3://", "s3a://")):
            from engine.store.s3 import S3, open_s3

            return open_s3(), cast(str, S3._strip_protocol(url))  # pyright: ignore[reportPrivateUsage]
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        extra = " (`pip install 'flywheel[s3]'`)" if url.startswith("s3") else ""
        raise UserError(f"the store {url} needs a package that is not installed{extra}: {error}.") from None
    except ValueError as error:
        raise UserError(f"the store's URL {url} can't be used: {error}.") from None


def _entry(facts: dict[str, Any]) -> ListedFile:
    when = facts.get("LastModified", facts.get("mtime", facts.get("created", 0)))
    seconds = when.timestamp() if isinstance(when, datetime.datetime) else float(when or 0)
    return ListedFile(int(facts["size"] or 0), str(facts.get("ETag", "")), seconds)
