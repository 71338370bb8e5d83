"""The records of runs, `runs/NAME.json`: what each stage of a recipe was when it ran last.

Several runs may change one record at the same time: each change is made on what is there then, and none is lost. A record that
is not what was written counts as absent; before the next one is written it is set aside under a name that tells.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import Damaged, StageFailed
from engine.store.file_lease import lock_file, locked
from engine.store.files import StoreFiles
from engine.store.sealed_json import FORMAT, sealed, unsealed
from engine.store.versions import put_version, read_version

SUFFIX, ASIDE = ".json", ".json.damaged-"
ATTEMPTS = 100
PLANNED = "planned"  # stages of a run under way that are not done, like those in `stages`
Record = dict[str, Any]


def names(store: StoreFiles) -> list[str]:
    """Of all records. Whatever else lies beside them is nobody's."""
    files = (name for name in store.list("runs") if name.endswith(SUFFIX) and not name.startswith("."))
    return [
        name.removesuffix(SUFFIX) for name in files if not (store.local and Path(store.path("runs", name)).is_dir())
    ]


def read(store: StoreFiles, name: str) -> Record | None:
    """A record; None if there is none, or only a damaged one (`store.damage` says why)."""
    place = f"runs/{name}{SUFFIX}"
    store.damage.pop(place, None)
    try:
        return _record(store.read("runs", name + SUFFIX), place)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except Damaged as error:
        store.damage[place] = str(error)
        return None


def update(store: StoreFiles, name: str, change: Callable[[Record], Record]) -> None:
    """Write `change(record)` in place of a record (`{"stages": {}}` where there is none). It may be called several times.

    Raises:
        StageFailed: others change it all the time.
    """
    if store.local:
        there = read(store, name)
        if there is not None and there == change(read(store, name) or there):
            return  # so that a store that is finished may be read-only
        # Without locks (`lease` said so) a change may get lost; what is there is whole all the same.
        with locked(lock_file(store, f"{name}.run"), wait=True):
            before = store.read("runs", name + SUFFIX) if store.exists("runs", name + SUFFIX) else None
            store.put(sealed(change(_known(store, name, before))), "runs", name + SUFFIX)
        return
    for _ in range(ATTEMPTS):
        found = read_version(store, "runs", name + SUFFIX)
        known = _known(store, name, found.data if found else None)
        changed = change(copy.deepcopy(known))
        if found and changed == known:
            return
        if put_version(store, sealed(changed), found.version if found else None, "runs", name + SUFFIX):
            return
    raise StageFailed(f"runs/{name}{SUFFIX} of {store.url} is changed by others all the time; run it again.")


def _known(store: StoreFiles, name: str, data: bytes | None) -> Record:
    if data is None:
        return {"stages": {}}
    place = f"runs/{name}{SUFFIX}"
    try:
        return _record(data, place)
    except Damaged as error:
        aside = f"{name}{ASIDE}{hashlib.sha256(data).hexdigest()[:8]}"
        store.put(data, "runs", aside)
        store.damage[place] = f"{error} It is set aside as runs/{aside}."
        return {"stages": {}}


def _record(data: bytes, place: str) -> Record:
    """
    Raises:
        Damaged: it is no record, or not the one that was written.
    """
    record = unsealed(data, place)
    if record.pop("format", 1) not in (1, FORMAT):
        raise Damaged(f"{place} is damaged: its format is unknown.")
    stages, failed = record.get("stages"), record.get("failed", {})
    sound = (
        all(isinstance(table, dict) for table in (stages, record.get(PLANNED, {})))
        and all(isinstance(e, dict) and _sound(e) for t in (stages, record.get(PLANNED, {})) for e in t.values())
        and isinstance(failed, dict)
        and all(isinstance(folder, str) for folder in failed.values())
    )
    if not sound:
        raise Damaged(f"{place} is damaged: it does not tell what the stages were.")
    for entry in [*record["stages"].values(), *record.get(PLANNED, {}).values()]:
        entry.setdefault("kind", entry["artifact"].rpartition("-")[0])
        entry.setdefault("inputs", {})
    return record


def _sound(entry: Record) -> bool:
    return (
        isinstance(entry.get("artifact"), str)
        and isinstance(entry.get("kind", ""), str)
        and isinstance(entry.get("identity", {}), dict)
        and isinstance(entry.get("inputs", {}), dict)
    )
