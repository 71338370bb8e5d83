"""The records of runs, `runs/NAME.json`: what each stage of a recipe was when it ran last.

Several runs may change one record at the same time: each change is made on what is there then, and none is lost. A record that
is not what was written counts as absent; before the next one is written it is set aside under a name that tells.

A run that makes something else under the same name leaves what the name stood for as `NAME@1`, `NAME@2`, ...: a record like any other,
with `replaced`, the time since 1970 at which that was. A tag is a name that stays with one of them.
"""

from __future__ import annotations

import copy
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import Damaged, StageFailed
from engine.store.file_lease import lock_file, locked
from engine.store.files import StoreFiles
from engine.store.sealed_json import FORMAT, sealed, unsealed
from engine.store.versions import put_version, read_version
from engine.text.visible import visible

SUFFIX, ASIDE = ".json", ".json.damaged-"
ATTEMPTS = 100
NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")  # it becomes a file's
LONGEST = 100  # name, in bytes
STATE = re.compile(r"(?P<run>.+)@(?P<number>\d+)")
TAGS, REPLACED = "tags", "replaced"
PLANNED = "planned"  # stages of a run under way that are not done, like those in `stages`
Record = dict[str, Any]


def names(store: StoreFiles) -> list[str]:
    """Of all records. Whatever else lies beside them is nobody's."""
    files = (name for name in store.list("runs") if name.endswith(SUFFIX) and not name.startswith("."))
    return [
        name.removesuffix(SUFFIX) for name in files if not (store.local and Path(store.path("runs", name)).is_dir())
    ]


def misnamed(name: str) -> str | None:
    """Why a run can't be called so, in words; None if it can."""
    shown = repr(name) if len(name) <= 60 else f"{name[:57]!r}..."
    if not (NAME.fullmatch(name) and len(name.encode()) <= LONGEST and visible(name) == name):
        told = f"at most {LONGEST} bytes that can be seen, on one line, has no `/` in it and doesn't begin with `.`"
        return f"a recipe's name is {told}; found {shown}."
    if STATE.fullmatch(name):
        return f"`NAME@1` is what a name stood for earlier; found {shown}."
    return None


def is_state(name: str) -> bool:
    """Whether a record is of what a name stood for earlier."""
    return STATE.fullmatch(name) is not None


def states(store: StoreFiles, run: str) -> list[str]:
    """Records of what a name stood for earlier, the first of them first."""
    found = {int(m["number"]): name for name in names(store) if (m := STATE.fullmatch(name)) and m["run"] == run}
    return [found[number] for number in sorted(found)]


def made(record: Record) -> dict[str, str]:
    """Stage -> the artifact that it was."""
    return {stage: entry["artifact"] for stage, entry in record.get("stages", {}).items()}


def set_aside(store: StoreFiles, run: str) -> str:
    """Keep what a name stands for now under `NAME@N`, since it is about to stand for something else. Its tags stay with it.

    Returns:
        the name of that record; of the one there was already, if the name stood for the same before.
    """
    now = read(store, run) or {"stages": {}}
    tags = list(now.get(TAGS, []))
    earlier = states(store, run)
    kept = next((one for one in earlier if made(read(store, one) or {}) == made(now)), None)
    last = STATE.fullmatch(earlier[-1]) if earlier else None
    number = int(last["number"]) if last else 0
    while kept is None:
        number += 1
        mine = {**now, REPLACED: time.time()}
        update(store, f"{run}@{number}", lambda there, mine=mine: there if there["stages"] else mine)
        if made(read(store, f"{run}@{number}") or {}) == made(now):  # another run may have taken the number
            kept = f"{run}@{number}"
    if tags:
        tag(store, kept, tags)
        update(store, run, lambda there: {name: value for name, value in there.items() if name != TAGS})
    return kept


def tag(store: StoreFiles, name: str, tags: list[str], remove: bool = False) -> None:
    """Add tags to a record, or take them away."""

    def change(record: Record) -> Record:
        had = list(record.get(TAGS, []))
        left = [one for one in had if one not in tags] if remove else list(dict.fromkeys([*had, *tags]))
        rest = {key: value for key, value in record.items() if key != TAGS}
        return {**rest, TAGS: left} if left else rest

    update(store, name, change)


def tagged(store: StoreFiles, tag: str) -> str | None:
    """The record that has this tag; None too where there is no store yet, nor a bucket for it."""
    try:
        return next((name for name in names(store) if tag in (read(store, name) or {}).get(TAGS, [])), None)
    except FileNotFoundError:
        return None


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
    tags = record.get(TAGS, [])
    sound = (
        all(isinstance(table, dict) for table in (stages, record.get(PLANNED, {})))
        and all(isinstance(e, dict) and _sound(e) for t in (stages or {}, record.get(PLANNED, {})) for e in t.values())
        and isinstance(failed, dict)
        and all(isinstance(folder, str) for folder in failed.values())
        and isinstance(tags, list)
        and all(isinstance(one, str) for one in tags)
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
