"""Whether a store holds what was put into it: every file against its digest, every manifest and record, lineage, counts of rows.

Files are read in several threads: hashing and Parquet leave Python's lock alone. What is under way is looked at as far as nobody
is writing it. Nothing is written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Literal, cast

import pyarrow as pa

from engine.errors import Damaged, UserError
from engine.execution.threads import cores
from engine.stage.stage import load
from engine.store.artifact import MANIFEST, Artifact
from engine.store.digest import digest_folder, digest_json
from engine.store.range_reads import RANGE, chunks
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.store.writer import CARD
from engine.text.visible import visible
from engine.upkeep.collection import in_bytes
from engine.upkeep.file_checks import Examined, examine_stored, fault_inside, fault_of_database
from engine.upkeep.inventory import (
    EXTERNAL,
    LITTER,
    Inventory,
    Manifest,
    StoredFile,
    busy,
    given,
    listing,
    take_inventory,
)
from engine.upkeep.row_checks import lost_parents, repeated_id

Tell = Callable[[int, int], None]  # bytes that were read, of how many
READERS = 8
Remedy = Literal["anew", "aside", "beside", "record", "none"]
LATER_S = 2.0  # what was written so much later than the manifest was changed after it


@dataclass(frozen=True)
class Damage:
    """One thing that is not what it was.

    Attributes:
        artifact: its folder; of a record of a run `runs/NAME.json`, of what is under way `work/FOLDER`.
        name: what people call it.
        file: inside of it; empty: all of it.
        what: is wrong, in words.
        heal: what puts it right.
        since: when it changed, where the file system can tell.
        remedy: what `repair` does: makes the artifact anew, sets the file aside (of a log or a card, and goes on without it), rebuilds the
            record of a run, or can do nothing.
    """

    artifact: str
    name: str
    what: str
    heal: str
    file: str = ""
    since: str | None = None
    remedy: Remedy = "anew"


@dataclass
class Verification:
    """What was looked at, what is damaged, and what is only worth a word."""

    artifacts: int = 0
    files: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=lambda: [])
    notes: list[str] = field(default_factory=lambda: [])

    @property
    def whole(self) -> bool:
        return not self.damage

    def as_json(self) -> dict[str, Any]:
        return {"whole": self.whole, **asdict(self)}


def verify(store: Store, name: str | None = None, tell: Tell = lambda done, total: None) -> Verification:
    """Look at all of a store, or at a run or an artifact and all that it rests on.

    Args:
        tell: is told how far it is.

    Raises:
        UserError: it is no store, or holds nothing of this name.
    """
    inventory = take_inventory(store)
    return Verifier(inventory, tell).verify(*inventory.scope(name), everything=name is None)


@dataclass
class Verifier:
    """Looks at artifacts and records of one inventory."""

    inventory: Inventory
    tell: Tell = lambda done, total: None
    found: Verification = field(default_factory=lambda: Verification())
    read: int = 0
    total: int = 0
    repeating: set[str] = field(default_factory=lambda: set())

    @property
    def store(self) -> Store:
        return self.inventory.store

    def verify(self, runs: list[str], folders: list[str], everything: bool = False) -> Verification:
        files = listing(self.store, "artifacts")
        by_folder: dict[str, dict[str, StoredFile]] = {}
        for path, stored in files.items():
            folder, _, name = path.partition("/")
            by_folder.setdefault(folder, {})[name] = stored
        self.total = sum(f.size for folder in folders for f in by_folder.get(folder, {}).values())
        for run in runs:
            self._record(run)
        with ThreadPoolExecutor(min(READERS, cores()) if self.store.local else READERS) as readers:
            for folder in folders:
                self._artifact(folder, by_folder.get(folder, {}), readers)
        for folder in [] if everything else folders:
            if not self._there(folder) and not busy(self.store, folder):
                self._gone(folder, self.inventory.title(folder), "it was asked for")
        if everything:
            self._under_way()
            self._unnamed()
            self.found.notes += [
                f"A repair of {f} was begun; `flywheel repair {f}` ends it." for f in self.inventory.repairs
            ]
            self.found.notes += [
                f"{path} is no part of a store. Remove it, or leave it." for path in self.inventory.strange
            ]
        return self.found

    # -- records and manifests -----------------------------------------------------------------------------------------

    def _record(self, run: str) -> None:
        if fault := self.inventory.record_faults.get(run):
            heal = f"`flywheel repair {run}`, or run its recipe again: what is in the store is cached"
            self.found.damage.append(Damage(f"runs/{run}.json", run, _after_name(fault), heal, remedy="record"))
            return
        for stage, entry in self.inventory.records[run]["stages"].items():
            if entry["artifact"] in self.inventory.begun or not self._there(entry["artifact"]):
                if busy(self.store, entry["artifact"]):
                    continue
                self._gone(entry["artifact"], f"{run}/{stage}", f"the run {run} made it")

    def _unnamed(self) -> None:
        """Nothing says which runs there were: that a record is gone shows in what it named."""
        if self.inventory.record_faults:
            return  # these may name it
        named = [folder for run in self.inventory.records for folder in self.inventory.named(run)]
        spare = sorted(self.inventory.manifests.keys() - {*self.inventory.closure(named)})
        if spare:
            self.found.notes.append(
                f"{', '.join(spare[:3])}{f' and {len(spare) - 3:,} more' if len(spare) > 3 else ''}: no run names it. Its recipe has changed "
                "since, or the run's record is gone; running the recipe again writes that anew. `flywheel gc` takes what no run names."
            )

    def _there(self, folder: str) -> bool:
        return folder in self.inventory.manifests or folder in self.inventory.faults

    def _gone(self, folder: str, name: str, why: str) -> None:
        if all(known.artifact != folder for known in self.found.damage):
            what = "has no manifest" if folder in self.inventory.begun else "is not in the store"
            self._add(folder, f"{what}, though {why}", name=name)

    def _add(self, folder: str, what: str, file: str = "", since: str | None = None, name: str | None = None) -> None:
        title = name or self.inventory.title(folder)
        self.found.damage.append(Damage(folder, title, what, f"`flywheel repair {folder}` makes it anew", file, since))

    def _artifact(self, folder: str, files: dict[str, StoredFile], readers: ThreadPoolExecutor) -> None:
        if fault := self.inventory.faults.get(folder):
            self._add(folder, _after_name(fault), MANIFEST)
            return
        manifest = self.inventory.manifests.get(folder)
        if manifest is None:
            return
        self.found.artifacts += 1
        self._lineage(folder, manifest)
        before = len(self.found.damage)
        examined = self._files(folder, manifest, files, readers)
        artifact = Artifact(self.store, folder, manifest)
        if len(self.found.damage) == before:  # rows of damaged files can't be counted
            self._counts(artifact, examined)
            self._rows(artifact)
        if manifest["stage"]["kind"] == EXTERNAL:
            self._elsewhere(folder, manifest)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _files(
        self, folder: str, manifest: Manifest, files: dict[str, StoredFile], readers: ThreadPoolExecutor
    ) -> list[Examined]:
        written = files[MANIFEST].modified if MANIFEST in files else time.time()
        beside: dict[str, Any] = manifest.get("beside", {})
        entries: dict[str, Any] = {**manifest["files"], **beside}
        look = functools.partial(self._file, folder, manifest, files)
        examined = list(readers.map(look, entries.items()))
        for (name, _), (fault, _) in zip(entries.items(), examined, strict=True):
            since = _since(files.get(name), written)
            if fault and name in beside:
                heal = f"`flywheel repair {folder}` {'writes it again' if name == CARD else 'leaves it out: nothing is made of it'}"
                title = self.inventory.title(folder)
                self.found.damage.append(Damage(folder, title, fault, heal, name, since, remedy="beside"))
            elif fault:
                self._add(folder, fault, name, since)
        for name, stored in files.items():
            if name in entries or name == MANIFEST:
                continue
            if name == CARD or name.startswith("logs/"):
                self._read(stored.size)
            elif LITTER.fullmatch(name):
                self.found.notes.append(f"artifacts/{folder}/{name} is not in the manifest. Remove it, or leave it.")
            else:
                place = self.store.path("artifacts", folder, name)
                self.found.damage.append(
                    Damage(folder, self.inventory.title(folder), "no manifest names it: it was put here later",
                           f"remove it ({place}), or `flywheel repair {folder}` sets it aside", name,
                           _since(stored, written), remedy="aside")
                )  # fmt: skip
        return [inside for _, inside in examined]

    def _file(
        self, folder: str, manifest: Manifest, files: dict[str, StoredFile], item: tuple[str, dict[str, Any]]
    ) -> tuple[str | None, Examined]:
        """(what is wrong with a file, what is in it)."""
        name, entry = item
        if name not in files:
            return "is missing", Examined()
        stored = files[name]
        self.found.files += 1
        try:
            if not stored.plain:
                return "is no file any more", Examined()
            if stored.size != entry["bytes"]:
                return f"has {stored.size:,} bytes; {entry['bytes']:,} were written", Examined()
            with self._whole(stored.size, "artifacts", folder, *name.split("/")) as (digest, file):
                if digest != entry["sha256"]:
                    return (
                        f"is not what was written (SHA-256 {digest[:12]}..., not {entry['sha256'][:12]}...)",
                        Examined(),
                    )
                inside = examine_stored(name, manifest["schema"], file)
            return inside.fault, inside
        except OSError as error:
            return f"can't be read: {error.strerror or error}", Examined()
        finally:
            self._read(stored.size)

    @contextlib.contextmanager
    def _whole(self, size: int, *parts: str) -> Generator[tuple[str, Any]]:
        """A file and its SHA-256. From elsewhere it is fetched for this alone: what is kept of it on this machine may be better."""
        if self.store.local:
            with Path(self.store.path(*parts)).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                yield digest, file
            return
        sha256 = hashlib.sha256()
        with SpooledTemporaryFile(RANGE) as file:
            for chunk in chunks(self.store, size, *parts):
                sha256.update(chunk)
                file.write(chunk)
            file.seek(0)
            yield sha256.hexdigest(), file

    def _read(self, size: int) -> None:
        self.found.bytes += size
        self.read += size
        self.tell(self.read, self.total)

    def _elsewhere(self, folder: str, manifest: Manifest) -> None:
        """A model that stays where it is, outside of the store."""
        place = manifest.get("external")
        if place is None:
            return
        label = manifest["stage"]["config"].get("name", folder)
        heal = f"put back at {place} what was there, or run the recipe again with what is there now"
        if not Path(place).is_dir():
            self.found.damage.append(Damage(folder, label, f"is not at {place} any more", heal, remedy="none"))
        elif digest_json(digest_folder(Path(place))) != manifest["key"]:
            self.found.damage.append(Damage(folder, label, f"at {place} is not what it was", heal, remedy="none"))

    # -- rows and lineage ------------------------------------------------------------------------------------------------

    def _lineage(self, folder: str, manifest: Manifest) -> None:
        for entry in given(manifest):
            source = entry["artifact"]
            if not self._there(source):
                self._gone(source, entry["name"], f"{self.inventory.title(folder)} was made of it")
            elif source in self.inventory.manifests and self.inventory.manifests[source]["digest"] != entry["digest"]:
                self._add(folder, f"was made of other bytes of {self.inventory.title(source)} than are there now")

    def _counts(self, artifact: Artifact, examined: list[Examined]) -> None:
        manifest = artifact.manifest
        rows = sum(one.rows for one in examined)
        if artifact.kind in DATASETS and rows != artifact.rows:
            self._add(artifact.id, f"holds {rows:,} rows; its manifest says {artifact.rows:,}")
        reasons = sum((one.reasons for one in examined), start=type(examined[0].reasons)()) if examined else {}
        if dict(reasons) != manifest["rejected"] or sum(one.failed for one in examined) != manifest["failed"]:
            told = f"{sum(reasons.values()):,} rows that did not make it"
            self._add(
                artifact.id, f"holds {told}; its manifest says {sum(manifest['rejected'].values()):,}, or other reasons"
            )
        if port := _sieve(manifest):
            came = [self.inventory.manifests.get(entry["artifact"]) for entry in manifest["inputs"].get(port, [])]
            went = artifact.rows + sum(manifest["rejected"].values())
            if None not in came and (rows := sum(cast(Manifest, one)["rows"] for one in came)) != went:
                self._add(artifact.id, f"{rows:,} rows came in as `{port}`, and {went:,} were kept or rejected")

    def _rows(self, artifact: Artifact) -> None:
        if artifact.kind not in DATASETS:
            return
        try:
            if fault := repeated_id(artifact):
                self._repeated(artifact, fault)
            names = self.inventory.closure([artifact.id])[-2::-1]  # the nearest first
            ancestors = [self.inventory.manifests.get(name) for name in names]
            damaged = {damage.artifact for damage in self.found.damage}
            if None in ancestors or damaged & {*names} or not names:
                return  # somebody else's parents, or told already
            made_of = [Artifact(self.store, n, cast(Manifest, m)) for n, m in zip(names, ancestors, strict=True)]
            lost, complete = lost_parents(artifact, made_of)
        except (Damaged, pa.ArrowException, OSError):  # a file of an ancestor, which is told there
            return
        if lost:
            self._add(
                artifact.id, f"{len(lost):,} parents of its rows stand in nothing it was made of, {lost[0]} among them"
            )
        elif not complete:
            self.found.notes.append(
                f"{self.inventory.title(artifact.id)}: the parents of a sample of its rows were looked for."
            )

    def _repeated(self, artifact: Artifact, fault: str) -> None:
        """Ids that people bring may repeat, and stay so in what only sifts those rows."""
        self.repeating.add(artifact.id)
        sources = self.inventory.inputs(artifact.id)
        if len(sources) != 1 or self.repeating & {*sources}:
            self.found.notes.append(f"{self.inventory.title(artifact.id)}: {fault}, as in what it was made of.")
        else:
            self._add(artifact.id, fault)

    # -- what is under way -------------------------------------------------------------------------------------------------

    def _under_way(self) -> None:
        """Scratch and committed parts of stages that nobody works on now."""
        work = self.store.workplace()
        for folder in sorted(path for path in work.iterdir() if path.is_dir()) if work.is_dir() else []:
            if busy(self.store, folder.name):
                self.found.notes.append(f"{folder.name} is being made right now: not looked at.")
                continue
            for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
                if LITTER.fullmatch(file.name):
                    continue
                if fault := _fault_in(file):
                    heal = f"remove it ({file}): what it held is done again"
                    name = file.relative_to(folder).as_posix()
                    self.found.damage.append(
                        Damage(f"work/{folder.name}", folder.name, fault, heal, name, remedy="aside")
                    )
        for folder in self.inventory.begun:
            if busy(self.store, folder):
                continue
            for name in self.store.walk("artifacts", folder):
                with self.store.fs.open(self.store.path("artifacts", folder, name), "rb") as file:
                    if fault := fault_inside(name, file):
                        heal = f"remove it ({self.store.path('artifacts', folder, name)}): it is made again"
                        title = self.inventory.title(folder)
                        self.found.damage.append(Damage(folder, title, fault, heal, name, remedy="aside"))


def _fault_in(file: Path) -> str | None:
    if file.name.endswith(".sqlite"):
        return fault_of_database(file)
    try:
        with file.open("rb") as opened:
            return fault_inside(file.name, opened)
    except OSError as error:
        return f"can't be read: {error.strerror}"


def _sieve(manifest: Manifest) -> str | None:
    """The port all of whose rows this stage keeps or rejects; None where it promises nothing, or is not installed."""
    try:
        return load(manifest["stage"]["kind"]).model_validate(manifest["stage"]["config"]).sieve()
    except (UserError, ValueError, ImportError):
        return None


def _since(stored: StoredFile | None, written: float) -> str | None:
    if stored is None or stored.modified <= written + LATER_S:
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stored.modified))


def _after_name(fault: str) -> str:
    """`X is damaged: why.` as what stands after the name of X."""
    return fault.partition(" is damaged: ")[2].rstrip(".") or fault.rstrip(".")


def lines(found: Verification) -> Iterator[str]:
    """What was found, for people."""
    for damage in found.damage:
        place = f"{damage.artifact}{f'/{damage.file}' if damage.file else ''}"
        called = f" ({damage.name})" if damage.name not in (damage.artifact, "") else ""
        since = f" It changed on {damage.since}." if damage.since else ""
        yield visible(f"✗ {place}{called}: {damage.what}.{since}", one_line=True)
        yield visible(f"    {damage.heal}.", one_line=True)
    for note in found.notes:
        yield visible(f"· {note}", one_line=True)
    told = f"{found.artifacts:,} artifacts, {found.files:,} files, {in_bytes(found.bytes)}"
    harmed = (
        "1 thing is not what it was"
        if len(found.damage) == 1
        else f"{len(found.damage):,} things are not what they were"
    )
    yield f"{told}: {'all as they were written' if found.whole else harmed}."
