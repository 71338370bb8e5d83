"""All that a store holds, read so that nothing damaged takes anything else down: manifests, records of runs, files."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from engine.errors import Damaged, UserError, nearest
from engine.plan.identity import folder_of, key_of
from engine.store.artifact import MANIFEST
from engine.store.digest import digest_json
from engine.store.lease import Lease, is_held, lease
from engine.store.schema import DATASETS, KINDS
from engine.store.sealed_json import unsealed
from engine.store.store import KEY_LENGTH, Store

PLACES = ("artifacts", "runs", "work", "tmp")
FOLDER = re.compile(rf"[\w.+][\w.+-]*-[0-9a-f]{{{KEY_LENGTH}}}")
ASIDE, REPAIRS = "aside", "repairs"  # what a repair keeps until it is done: the old artifact, and a note of it
EXTERNAL = "external"  # the kind of what no stage made
# What file systems, file managers and interrupted writes leave: nobody reads it.
LITTER = re.compile(r"(?:.*/)?(?:\.[^/]*|Thumbs\.db|desktop\.ini|[^/]*\.[0-9a-f]*partial)")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class StoredFile:
    """Bytes, and when they were last written (seconds since 1970), as the file system says; whether it is a file at all."""

    size: int
    modified: float
    plain: bool = True


@dataclass
class Inventory:
    """What is there.

    Attributes:
        manifests: of finished artifacts, by folder.
        faults: why a manifest can't be used, by folder.
        begun: folders without a manifest.
        records: of runs, by name.
        record_faults: why a run's record can't be used, by name.
        repairs: folders of artifacts whose repair was begun.
        strange: what lies in the store and is no part of one.
    """

    store: Store
    manifests: dict[str, Manifest] = field(default_factory=lambda: {})
    faults: dict[str, str] = field(default_factory=lambda: {})
    begun: list[str] = field(default_factory=lambda: [])
    records: dict[str, dict[str, Any]] = field(default_factory=lambda: {})
    record_faults: dict[str, str] = field(default_factory=lambda: {})
    repairs: list[str] = field(default_factory=lambda: [])
    strange: list[str] = field(default_factory=lambda: [])

    def title(self, folder: str) -> str:
        """RUN/STAGE where a run has it, else the folder's name."""
        for run, record in self.records.items():
            for stage, entry in record["stages"].items():
                if entry["artifact"] == folder:
                    return f"{run}/{stage}"
        return folder

    def inputs(self, folder: str) -> list[str]:
        """The folders that an artifact was made of; where its manifest is lost, as the records of runs have it."""
        if folder in self.manifests:
            return list(dict.fromkeys(entry["artifact"] for entry in given(self.manifests[folder])))
        told = [
            source
            for record in self.records.values()
            for entry in record["stages"].values()
            if entry["artifact"] == folder
            for sources in entry["inputs"].values()
            for _, source in sources
        ]
        return list(dict.fromkeys(told))

    def closure(self, folders: Iterable[str]) -> list[str]:
        """These and all that they rest on, what something is made of before it."""
        order: dict[str, None] = {}
        waiting = [(folder, False) for folder in reversed(list(folders))]
        seen: set[str] = set()
        while waiting:
            folder, done = waiting.pop()
            if done:
                order[folder] = None
            elif folder not in seen:
                seen.add(folder)
                waiting.append((folder, True))
                waiting += [(source, False) for source in reversed(self.inputs(folder))]
        return list(order)

    def made_of(self, folder: str) -> list[str]:
        """The finished artifacts that take this one, itself."""
        return [name for name in self.manifests if folder in self.inputs(name)]

    def named(self, run: str) -> list[str]:
        """What a run's record names: the results of its stages."""
        return [entry["artifact"] for entry in self.records[run]["stages"].values()]

    def scope(self, name: str | None) -> tuple[list[str], list[str]]:
        """(runs, artifacts with all that they rest on) that a name means: RUN, RUN/STAGE, a stage, a folder, the start of a key;
        None: everything.

        Raises:
            UserError: nothing has this name, or several have.
        """
        folders = sorted({*self.manifests, *self.faults, *self.begun})
        if name is None:
            missing = [source for folder in folders for source in self.inputs(folder)]
            missing += [folder for run in self.records for folder in self.named(run)]
            return sorted({*self.records, *self.record_faults}), self.closure([*folders, *missing])
        if name in self.record_faults:
            return [name], []
        if name in self.records:
            return [name], self.closure(self.named(name))
        run, _, stage = name.rpartition("/")
        found = {
            entry["artifact"]
            for one, record in self.records.items()
            for title, entry in record["stages"].items()
            if title == stage and run in ("", one)
        }
        if not found and not run:
            named = [one for record in self.records for one in self.named(record)]
            known = sorted({*folders, *named, *self.repairs, *(s for folder in folders for s in self.inputs(folder))})
            found = {folder for folder in known if folder == name or folder.rpartition("-")[2].startswith(name)}
        if len(found) == 1:
            return [], self.closure(found)
        if found:
            raise UserError(f"`{name}` fits several artifacts: {', '.join(sorted(found))}. Name one of them.")
        titles = [f"{run}/{stage}" for run, record in self.records.items() for stage in record["stages"]]
        raise UserError(
            f"there is no run and no artifact `{name}` in the store {self.store.url}."
            f"{nearest(name, [*self.records, *self.record_faults, *titles, *folders])} `flywheel status` lists what there is."
        )


def given(manifest: Manifest) -> Iterator[dict[str, str]]:
    """The inputs of an artifact: `name`, `artifact`, `digest` of each."""
    for entries in manifest["inputs"].values():
        yield from entries


def take_inventory(store: Store) -> Inventory:
    """Read what a store holds.

    Raises:
        UserError: it is no store.
    """
    check_is_store(store)
    found = Inventory(store)
    found.repairs = [name.removesuffix(".json") for name in store.list(REPAIRS) if name.endswith(".json")]
    for name in store.list("artifacts"):
        if not FOLDER.fullmatch(name):
            found.strange.append(f"artifacts/{name}")
            continue
        try:
            found.manifests[name] = read_manifest(store, name)
        except FileNotFoundError:
            found.begun.append(name)
        except NotADirectoryError:
            found.strange.append(f"artifacts/{name}")
        except (Damaged, OSError) as error:
            found.faults[name] = str(error)
    for name in store.list("runs"):
        if not name.endswith(".json") or name.startswith("."):
            found.strange.append(f"runs/{name}")
            continue
        run = name.removesuffix(".json")
        try:
            found.records[run] = read_record(store, run)
        except (Damaged, OSError) as error:
            found.record_faults[run] = str(error)
    return found


def check_is_store(store: Store) -> None:
    """
    Raises:
        UserError: there is nothing here, or something that is no store.
    """
    if any(store.exists(place) for place in PLACES):
        return
    there = store.list()
    if not there and not store.exists():
        raise UserError(f"there is no store {store.url}. `--store` or $FLYWHEEL_STORE says where yours is.")
    holds = f"it holds {', '.join(there[:3])}{', ...' if len(there) > 3 else ''}" if there else "it is empty"
    raise UserError(
        f"{store.url} is no store: it has none of {', '.join(f'{place}/' for place in PLACES[:3])}; {holds}. "
        "`--store` or $FLYWHEEL_STORE says where yours is."
    )


def read_manifest(store: Store, folder: str) -> Manifest:
    """
    Raises:
        Damaged: it is no manifest, or not the one of this folder. FileNotFoundError: there is none.
    """
    return parse_manifest(folder, store.read("artifacts", folder, MANIFEST))


def parse_manifest(folder: str, data: bytes) -> Manifest:
    """
    Raises:
        Damaged: it is no manifest, or not the one of this folder.
    """
    manifest = unsealed(data, f"{folder}/{MANIFEST}")
    if fault := _manifest_fault(folder, manifest):
        raise Damaged(f"{folder}/{MANIFEST} is damaged: {fault}.")
    return manifest


def read_record(store: Store, run: str) -> dict[str, Any]:
    """
    Raises:
        Damaged: it is no record of a run.
    """
    return parse_record(run, store.read("runs", f"{run}.json"))


def parse_record(run: str, data: bytes) -> dict[str, Any]:
    """
    Raises:
        Damaged: it is no record of a run.
    """
    record = unsealed(data, f"runs/{run}.json")
    stages = record.get("stages")
    if not isinstance(stages, dict) or not all(is_entry(entry) for entry in cast(dict[str, Any], stages).values()):
        raise Damaged(f"runs/{run}.json is damaged: an entry of a stage lacks what every entry has.")
    return record


def is_entry(entry: Any) -> bool:
    """Whether this tells a stage of a run, and an artifact whose name is that of its identity."""
    try:
        sources = [source for given in entry["inputs"].values() for _, source in given]
        return (
            all(isinstance(source, str) and FOLDER.fullmatch(source) for source in sources)
            and folder_of(entry["kind"], key_of(entry["identity"])) == entry["artifact"]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _manifest_fault(folder: str, manifest: Manifest) -> str | None:
    """What of a manifest does not fit together: with the folder's name, which is the key's, or in itself."""
    shapes: dict[str, type] = {
        "key": str, "digest": str, "kind": str, "schema": str, "rows": int, "failed": int, "stage": dict, "identity": dict,
        "inputs": dict, "files": dict, "rejected": dict, "summary": dict, "timings": dict, "packages": dict,
    }  # fmt: skip
    if wrong := next((name for name, form in shapes.items() if not isinstance(manifest.get(name), form)), None):
        return f"`{wrong}` is missing, or is not what it should be"
    try:
        kind = manifest["stage"]["kind"]
        digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        sizes = all(isinstance(entry["bytes"], int) for entry in manifest["files"].values())
        sources = [entry["artifact"] for entry in given(manifest) if entry["digest"] and entry["name"]]
        if not (isinstance(kind, str) and isinstance(manifest["stage"]["config"], dict) and sizes):
            raise TypeError
        if not all(FOLDER.fullmatch(source) for source in sources):
            return "it names an input that no store has"
    except (KeyError, TypeError, ValueError, AttributeError):
        return "its stage, files or inputs are not what they should be"
    if folder != folder_of(kind, manifest["key"]):
        return f"it is that of another artifact, {folder_of(kind, manifest['key'])}"
    if manifest["schema"] not in KINDS or manifest["kind"] != (
        "dataset" if manifest["schema"] in DATASETS else "model"
    ):
        return f"there is no kind `{manifest['schema']}`"
    if kind != EXTERNAL and key_of(manifest["identity"]) != manifest["key"]:
        return "what it says the artifact was made of does not give its key"
    of_files = kind != EXTERNAL or (manifest["kind"] == "model" and digests)  # of rows from outside it is the key
    if of_files and digest_json(digests) != manifest["digest"]:
        return "its digest is not that of the files it names"
    return next((f"it names a file {name!r}" for name in digests if not is_inside(name)), None)


def is_inside(name: str) -> bool:
    """Whether a relative path of plain names stays where it is put, on any system."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or set(part) & set("\\\0") or part.endswith(":") for part in parts)


def listing(store: Store, *parts: str) -> dict[str, StoredFile]:
    """All files below a folder of the store, by their path from it."""
    if store.local:
        return dict(sorted(_on_disk(Path(store.path(*parts)))))
    return {name: StoredFile(told.size, told.modified) for name, told in store.entries(*parts).items()}


def _on_disk(top: Path) -> Iterator[tuple[str, StoredFile]]:
    """People put large artifacts on other disks: links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(top, followlinks=True):
        told = Path(place).stat()
        if (told.st_dev, told.st_ino) in seen:
            folders.clear()
            continue
        seen.add((told.st_dev, told.st_ino))
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):  # somebody has just taken it away; a link to nothing
                facts = path.stat()
                plain = stat.S_ISREG(facts.st_mode)
                yield path.relative_to(top).as_posix(), StoredFile(facts.st_size, facts.st_mtime, plain)


def claim(store: Store, artifact: str) -> AbstractContextManager[Lease]:
    """Hold an artifact, so that nobody makes it meanwhile.

    Raises:
        Busy: somebody makes it right now.
    """
    return lease(store, artifact, no_wait=True)


def busy(store: Store, artifact: str) -> bool:
    """Whether somebody makes this artifact right now. Looks, and leaves nothing."""
    return is_held(store, artifact)
