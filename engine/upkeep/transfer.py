"""A run, or an artifact, and all that it rests on, brought to another store: over the network, or as one file.

The file is a plain tar archive (what is in it is compressed already) that begins with a table of its contents, and has the same
bytes wherever it is made. Everything is compared with its digest as it arrives. An artifact appears whole; one that is there
already is left alone, and none is replaced by another. What arrived before a kill is not sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from engine.errors import Damaged, UserError
from engine.store.artifact import MANIFEST
from engine.store.digest import digest_file, digest_folder, digest_json
from engine.store.range_reads import chunks
from engine.store.run_records import NAME
from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.store.whole_file import whole_file
from engine.store.writer import CARD, ArtifactWriter
from engine.upkeep.collection import in_bytes
from engine.upkeep.inventory import (
    FOLDER,
    LITTER,
    Inventory,
    Manifest,
    claim,
    given,
    is_inside,
    listing,
    parse_manifest,
    parse_record,
    take_inventory,
)

INDEX, VERSION = "flywheel.json", 1
LARGEST = 1 << 26  # bytes of a table of contents, a manifest, a header in the archive: they are read whole
CHUNK = 1 << 22
INCOMING = "incoming"  # in the scratch folder of an artifact that arrives
Tell = Callable[[int, int], None]


@dataclass
class Cargo:
    """What is sent.

    Attributes:
        run: the name of a run, if it is one.
        artifacts: folder -> digest, what something is made of before it.
        files: path in a store -> (bytes, SHA-256), in the order in which they are sent: of each artifact the manifest first, the
            run's record last.
        sources: where a file is read from, if that is not its path in the store.
    """

    run: str | None
    artifacts: dict[str, str] = field(default_factory=lambda: {})
    files: dict[str, tuple[int, str]] = field(default_factory=lambda: {})
    sources: dict[str, Path | bytes] = field(default_factory=lambda: {})

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())

    def index(self) -> bytes:
        files = {path: list(entry) for path, entry in self.files.items()}
        told = {"flywheel": VERSION, "run": self.run, "artifacts": self.artifacts, "files": files}
        return json.dumps(told, indent=1, ensure_ascii=False).encode()


@dataclass
class Arrival:
    """What came of it: artifacts that arrived and that were there, bytes that were written."""

    arrived: list[str] = field(default_factory=lambda: [])
    there: list[str] = field(default_factory=lambda: [])
    written: int = 0

    def __str__(self) -> str:
        there = f", {len(self.there)} were there" if self.there else ""
        return f"{len(self.arrived)} artifacts arrived{there}; {in_bytes(self.written)} written"


# -- sending ---------------------------------------------------------------------------------------------------------------


def gather(store: Store, name: str) -> Cargo:
    """A run or an artifact with all that it rests on. Models that were taken from outside come along.

    Raises:
        UserError: there is nothing of this name. Damaged: not all of it is there.
    """
    inventory = take_inventory(store)
    runs, folders = inventory.scope(name)
    if faults := [inventory.record_faults[run] for run in runs if run in inventory.record_faults]:
        raise Damaged(f"{faults[0]} `flywheel repair {name}` comes first.")
    cargo = Cargo(runs[0] if runs else None)
    for folder in folders:
        if folder not in inventory.manifests:
            fault = inventory.faults.get(folder, f"{inventory.title(folder)} ({folder}) is not there.")
            raise Damaged(f"{fault} `flywheel repair {name}` comes first.")
        _gather_artifact(inventory, folder, cargo)
    if cargo.run is not None:
        _add(cargo, f"runs/{cargo.run}.json", store.read("runs", f"{cargo.run}.json"))
    return cargo


def _add(cargo: Cargo, path: str, data: bytes) -> None:
    cargo.files[path] = (len(data), hashlib.sha256(data).hexdigest())
    cargo.sources[path] = data


def _gather_artifact(inventory: Inventory, folder: str, cargo: Cargo) -> None:
    store, manifest, at = inventory.store, inventory.manifests[folder], f"artifacts/{folder}"
    cargo.artifacts[folder] = manifest["digest"]
    if "external" in manifest:  # it is nowhere but on this machine
        place = Path(manifest["external"])
        digests = digest_folder(place) if place.is_dir() else {}
        if digest_json(digests) != manifest["key"]:
            raise Damaged(f"the model at {place} is gone, or not what it was: it can't be sent.")
        entries: dict[str, Any] = {
            name: {"bytes": (place / name).stat().st_size, "sha256": digest} for name, digest in digests.items()
        }
        manifest = {key: value for key, value in manifest.items() if key != "external"} | {"files": entries}
        _add(cargo, f"{at}/{MANIFEST}", sealed(manifest))
        cargo.sources |= {f"{at}/{name}": place / name for name in entries}
    else:
        _add(cargo, f"{at}/{MANIFEST}", store.read("artifacts", folder, MANIFEST))
    for name, entry in sorted(manifest["files"].items()):
        cargo.files[f"{at}/{name}"] = (entry["bytes"], entry["sha256"])
    for name in listing(store, "artifacts", folder):
        if name not in manifest["files"] and _is_beside(name):
            _add(cargo, f"{at}/{name}", store.read("artifacts", folder, *name.split("/")))


def _is_beside(name: str) -> bool:
    """Whether this is a file that artifacts have and their digests leave out: nobody's work reads it."""
    return name == CARD or (name.startswith("logs/") and not LITTER.fullmatch(name))


def _open(store: Store, cargo: Cargo, path: str) -> Any:
    source = cargo.sources.get(path)
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source.open("rb") if source else store.fs.open(store.path(path), "rb")


def copy(store: Store, name: str, to: Store, as_: str | None = None, tell: Tell = lambda done, total: None) -> Arrival:
    """Bring a run or an artifact, and all that it rests on, to another store.

    Args:
        as_: the run's name there.

    Raises:
        UserError: the other store has something else of this name. Damaged: a file is not what was written.
    """
    if (store.fs, store.root) == (to.fs, to.root):
        raise UserError(f"{to.url} is the store that it would be copied from.")
    cargo = gather(store, name)

    def files() -> Iterator[tuple[str, Any]]:
        for path in cargo.files:
            with contextlib.closing(_open(store, cargo, path)) as file:
                yield path, file

    return receive(to, cargo, files(), as_, tell)


def export(store: Store, name: str, to: Path, tell: Tell = lambda done, total: None) -> Cargo:
    """Write a run or an artifact, and all that it rests on, as one tar archive.

    Raises:
        UserError: there is nothing of this name. Damaged: a file is not what was written.
    """
    cargo = gather(store, name)
    done = 0
    partial: Path | None = None
    try:
        with whole_file(to, shared=True) as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
            index = cargo.index()
            archive.addfile(_member(INDEX, len(index)), io.BytesIO(index))
            for path, (size, digest) in cargo.files.items():
                with contextlib.closing(_open(store, cargo, path)) as file:
                    hashed = _Hashed(file)
                    try:
                        archive.addfile(_member(path, size), cast(Any, hashed))
                    except OSError as error:
                        if error.errno:
                            raise UserError(f"{to} can't be written, or {path} not read: {error.strerror}.") from None
                        raise Damaged(f"{path} is shorter than it was. {_heal(path)}") from None
                if hashed.sha256.hexdigest() != digest:
                    raise Damaged(f"{path} is not what was written. {_heal(path)}")
                tell(done := done + size, cargo.bytes)
    except BaseException:
        if partial:
            partial.unlink(missing_ok=True)
        raise
    return cargo


def _heal(path: str) -> str:
    return f"`flywheel repair {path.split('/')[1].removesuffix('.json')}` makes it anew."


def _member(name: str, size: int) -> tarfile.TarInfo:
    """The same whoever writes it, and when."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self.file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = cast(bytes, self.file.read(size))
        self.sha256.update(data)
        return data


# -- receiving -------------------------------------------------------------------------------------------------------------


def receive(
    store: Store,
    cargo: Cargo,
    files: Iterable[tuple[str, Any]],
    as_: str | None = None,
    tell: Tell = lambda done, total: None,
) -> Arrival:
    """Take in what is sent.

    Args:
        files: (path, its bytes to read) in the order of the cargo.

    Raises:
        UserError: something else of the same name is there already, or what is sent is not what it claims to be.
        Damaged: bytes changed on their way.
    """
    arrival = Arrival()
    for folder, digest in cargo.artifacts.items():
        found = store.get(folder)
        if found is not None and found.digest != digest:
            raise UserError(
                f"{store.url} has {folder} with other contents (digest {found.digest[:12]}..., here {digest[:12]}...). Nothing "
                "was written: a finished artifact is never replaced by another. Remove the one that you don't want."
            )
        (arrival.there if found else arrival.arrived).append(folder)
    done, dock = 0, None
    with contextlib.ExitStack() as held:
        for path, file in files:
            size, digest = cargo.files[path]
            place, folder, name = (*path.split("/", 2), "")[:3]
            if place == "runs":
                if dock:
                    dock.finish()
                _receive_run(store, cargo, as_ or cast(str, cargo.run), _checked(file.read(LARGEST), path, digest))
                dock = None
            elif folder in arrival.arrived:
                if dock is None or dock.folder != folder:
                    if dock:
                        dock.finish()
                    held.close()
                    held.enter_context(claim(store, folder))
                    dock = _Dock(store, folder, cargo)
                if name == MANIFEST:
                    dock.expect(_checked(file.read(LARGEST), path, digest))
                elif not dock.manifest:
                    raise UserError(f"{path} comes before the manifest that says what it must be. It was not written.")
                elif not dock.has(name, size, digest):
                    dock.take(name, file, size, digest)
                    arrival.written += size
            tell(done := done + size, cargo.bytes)
        if dock:
            dock.finish()
    return arrival


def _checked(data: bytes, path: str, digest: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != digest:
        raise Damaged(f"{path} changed on its way here: it is not what its digest says. Send it again.")
    return data


@dataclass
class _Dock:
    """Where the files of one artifact arrive: aside, until all of it is there; on an object store in their place, since nothing
    is an artifact before its manifest is there."""

    store: Store
    folder: str
    cargo: Cargo
    manifest: bytes = b""

    @cached_property
    def there(self) -> dict[str, int]:
        """Bytes of what had arrived in a store elsewhere."""
        return {name: told.size for name, told in self.store.entries("artifacts", self.folder).items()}

    @property
    def aside(self) -> Path:
        return self.store.scratch(self.folder) / INCOMING

    @property
    def names(self) -> set[str]:
        at = f"artifacts/{self.folder}/"
        return {path.removeprefix(at) for path in self.cargo.files if path.startswith(at)} - {MANIFEST}

    def expect(self, data: bytes) -> None:
        """The manifest, which says what the other files must be.

        Raises:
            UserError: it does not fit the rest.
        """
        manifest: Manifest = parse_manifest(self.folder, data)
        at, sent = f"artifacts/{self.folder}", self.cargo.files
        if manifest["digest"] != self.cargo.artifacts[self.folder] or "external" in manifest:
            raise UserError(f"{at}: its manifest is not that of what is sent. Nothing of it was written.")
        for name, entry in manifest["files"].items():
            if sent.get(f"{at}/{name}") != (entry["bytes"], entry["sha256"]):
                raise UserError(f"{at}/{name} is not sent as its manifest has it. Nothing of it was written.")
        missing = [entry["artifact"] for entry in given(manifest) if entry["artifact"] not in self.cargo.artifacts]
        if missing:
            raise UserError(f"{at} is made of {missing[0]}, which is not sent with it. Nothing of it was written.")
        if extra := sorted(name for name in self.names - {*manifest["files"]} if not _is_beside(name)):
            raise UserError(f"{at}/{extra[0]} is sent, and its manifest has no such file. Nothing of it was written.")
        self.manifest = data
        for name in self._arrived():
            if name not in self.names:
                self._drop(name)

    def _arrived(self) -> list[str]:
        if not self.store.local:
            return list(self.there)
        place = self.aside
        return [file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()]

    def _drop(self, name: str) -> None:
        if self.store.local:
            (self.aside / name).unlink()
        else:
            self.store.delete([("artifacts", self.folder, *name.split("/"))])

    def has(self, name: str, size: int, digest: str) -> bool:
        """Whether it arrived before, whole."""
        if self.store.local:
            file = self.aside / name
            return file.is_file() and file.stat().st_size == size and digest_file(file) == digest
        parts = ("artifacts", self.folder, *name.split("/"))
        if self.there.get(name) != size:
            return False
        hashed = hashlib.sha256()
        for chunk in chunks(self.store, size, *parts):
            hashed.update(chunk)
        return hashed.hexdigest() == digest

    def take(self, name: str, file: Any, size: int, digest: str) -> None:
        with whole_file(self.aside / name) as partial:
            hashed, left = hashlib.sha256(), size
            with partial.open("wb") as target:
                while left and (chunk := cast(bytes, file.read(min(CHUNK, left)))):
                    hashed.update(chunk)
                    target.write(chunk)
                    left -= len(chunk)
                target.flush()
                os.fsync(target.fileno())
            if left or hashed.hexdigest() != digest:
                partial.unlink()
                raise Damaged(
                    f"artifacts/{self.folder}/{name} changed on its way here, or where it came from. Send it again."
                )
        if not self.store.local:
            self.store.put_file(self.aside / name, "artifacts", self.folder, *name.split("/"))

    def finish(self) -> None:
        """From now on it is an artifact."""
        if not self.manifest:
            raise UserError(f"artifacts/{self.folder} comes without a manifest.")
        if self.store.local:
            ArtifactWriter(self.store, self.folder).discard()  # what a stage that stopped had made of it
            with whole_file(self.aside / MANIFEST) as partial:
                partial.write_bytes(self.manifest)
            target = Path(self.store.path("artifacts", self.folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.aside.replace(target)
        else:
            self.store.put(self.manifest, "artifacts", self.folder, MANIFEST)
        shutil.rmtree(self.store.scratch(self.folder), ignore_errors=True)


def _receive_run(store: Store, cargo: Cargo, name: str, data: bytes) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"a run can't be called {name!r}.")
    stages = {stage: entry["artifact"] for stage, entry in parse_record(name, data)["stages"].items()}
    if unknown := sorted({*stages.values()} - {*cargo.artifacts}):
        raise UserError(f"the run names {unknown[0]}, which is not sent with it.")
    there = store.run(name)
    if there is not None:
        if {stage: entry["artifact"] for stage, entry in there.get("stages", {}).items()} == stages:
            return
        raise UserError(
            f"{store.url} has a run `{name}` of its own, of other artifacts. What was sent is there; `--as NAME` gives the run another "
            "name."
        )
    store.put(data, "runs", f"{name}.json")


# -- one file --------------------------------------------------------------------------------------------------------------


class _Bounded(io.RawIOBase):
    """An archive of which nothing is read whole that is larger than what is: headers can claim any size."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST:
            raise tarfile.ReadError("a header of it is too large")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def import_file(store: Store, file: Path, as_: str | None = None, tell: Tell = lambda done, total: None) -> Arrival:
    """Take in what `export` wrote.

    Args:
        as_: the run's name here.

    Raises:
        UserError: it is no such file, or holds what it should not. Damaged: it is not whole any more.
    """
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=cast(Any, _Bounded(opened)), mode="r:") as archive:
            cargo = _read_index(archive, file)
            if cargo.bytes > file.stat().st_size:
                raise Damaged(
                    f"{file} is cut short: it claims to hold {cargo.bytes:,} bytes and has {file.stat().st_size:,}."
                )
            if store.local:
                _check_space(store, cargo.bytes)
            arrival = receive(store, cargo, _members(archive, cargo, file), as_, tell)
            if archive.next() is not None:
                raise UserError(f"{file} holds more than its table of contents says; that was left out.")
            return arrival
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{file} is no export of `flywheel store export`, or not whole any more: {error}.") from None
    except OSError as error:
        raise UserError(f"{file} can't be taken in: {error.strerror or error} ({error.filename or file}).") from None


def _check_space(store: Store, needed: int) -> None:
    place = Path(store.root)
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < needed:
        raise UserError(f"{needed:,} bytes are to be written, and {free:,} are free at {place}.")


def _read_index(archive: tarfile.TarFile, file: Path) -> Cargo:
    member = archive.next()
    if member is None or member.name != INDEX or not _is_plain(member) or member.size > LARGEST:
        raise UserError(f"{file} is no export of `flywheel store export`: it does not begin with {INDEX}.")
    opened = archive.extractfile(member)
    assert opened
    try:
        told = json.loads(opened.read(LARGEST))
        if told["flywheel"] != VERSION:
            raise UserError(
                f"{file} was written by a later Flywheel (version {told['flywheel']}; {VERSION} is known here)."
            )
        cargo = Cargo(
            told["run"], dict(told["artifacts"]), {p: (int(e[0]), str(e[1])) for p, e in told["files"].items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        raise UserError(
            f"{file} is no export of `flywheel store export`: its table of contents can't be read."
        ) from None
    if cargo.run is not None and not (isinstance(cast(Any, cargo.run), str) and NAME.fullmatch(cargo.run)):
        raise UserError(f"{file} holds a run {cargo.run!r}: no store calls one so. Nothing was written.")
    for folder, digest in cargo.artifacts.items():
        if not FOLDER.fullmatch(folder) or not isinstance(cast(Any, digest), str):
            raise UserError(f"{file} holds an artifact {folder!r}: no store calls one so. Nothing was written.")
    for path, (size, _) in cargo.files.items():
        place, folder, name = (*path.split("/", 2), "", "")[:3]
        fits = bool(place == "artifacts" and folder in cargo.artifacts and name) or path == f"runs/{cargo.run}.json"
        if not fits or not is_inside(path) or not path.isprintable() or size < 0:
            raise UserError(f"{file} holds {path!r}, which has no place in a store. Nothing was written.")
    return cargo


def _is_plain(member: tarfile.TarInfo) -> bool:
    """A file with bytes of its own: no link, no device, no folder, and none that is larger than it is (sparse)."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None  # pyright: ignore[reportAttributeAccessIssue]


def _members(archive: tarfile.TarFile, cargo: Cargo, file: Path) -> Iterator[tuple[str, Any]]:
    for path, (size, _) in cargo.files.items():
        member = archive.next()
        if member is None:
            raise Damaged(f"{file} is cut short: {path} is missing. What arrived stays; take in the whole file again.")
        if member.name != path or not _is_plain(member) or member.size != size:
            raise UserError(
                f"{file} holds {member.name!r} where {path} of {size:,} bytes should be. It was not written."
            )
        yield path, archive.extractfile(member)
