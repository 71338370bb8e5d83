"""What nobody needs any more: artifacts that no run names and nothing that stays is made of, scratch, copies, leftovers, answers.

What somebody wrote within the last hour, or works on now, is never taken; nor are artifacts while a record of a run, which
might name them, can't be read. An artifact goes after everything made of it, so that what stays is whole.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from engine.errors import Busy, UserError
from engine.execution.again import BEFORE
from engine.store import cache, run_records
from engine.store.artifact import MANIFEST
from engine.store.store import Store
from engine.upkeep.inventory import ASIDE, EXTERNAL, PLACES, Inventory, StoredFile, busy, claim, listing, take_inventory
from engine.view.unfinished import SPEC

GRACE_S = 3600.0  # what is younger may be somebody's who has only just written it
OLDER_S = 7 * 86400.0
ANSWERS, COPIES = "answers", "inputs"  # in the folder of work under way: of servers; of artifacts of a store elsewhere
OBJECTS, UPLOADS = "objects", "uploads"  # as what they are told, in a store elsewhere
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
SIZES = {"": 1, "b": 1} | {
    f"{unit}{end}": base**power
    for power, unit in enumerate("kmgt", 1)
    for end, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True)
class Unneeded:
    """Something that may go.

    Attributes:
        what: earlier (what a run's name stood for), artifact, unfinished, scratch, copy, answers, leftover, lock or set aside.
        place: in the store, `work/...` in the folder for work under way.
        modified: when it, or the last thing made of it, was written (seconds since 1970).
    """

    what: str
    place: str
    size: int
    modified: float
    why: str

    @property
    def folder(self) -> str:
        return self.place.partition("/")[2].removesuffix(".lock")


@dataclass
class Collection:
    """What would go, what the store holds now, and what is worth a word."""

    unneeded: list[Unneeded] = field(default_factory=lambda: [])
    held: int = 0
    notes: list[str] = field(default_factory=lambda: [])
    quota: int | None = None

    @property
    def freed(self) -> int:
        return sum(one.size for one in self.unneeded)

    @property
    def over(self) -> int:
        """Bytes by which what stays is more than the quota."""
        return max(0, self.held - self.freed - self.quota) if self.quota is not None else 0


def seconds(text: str) -> float:
    """`7d`, `12h`, `30m`, `2w`.

    Raises:
        UserError: it is no such time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if not match:
        raise UserError(f"`{text}` is no time: expected a number and s, m, h, d or w, as in `7d`.")
    return float(match[1]) * UNITS[match[2]]


def size(text: str) -> int:
    """`20GB`, `500 MiB`.

    Raises:
        UserError: it is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].lower() not in SIZES:
        raise UserError(f"`{text}` is no size: expected a number and a unit, as in `20GB` or `500MiB`.")
    return int(float(match[1]) * SIZES[match[2].lower()])


def find_unneeded(
    store: Store,
    *,
    older: float | None = None,
    keep_last: int = 0,
    quota: int | None = None,
    answers: bool = False,
) -> Collection:
    """Look for what may go, and remove nothing.

    Args:
        older: seconds since it was written, at least; a week by default, an hour where a quota says how much goes.
        keep_last: of each kind of stage so many of the youngest artifacts stay, though no run names them.
        quota: bytes that the store may hold; the oldest go first, and no more than need be.
        answers: of servers go, too: whoever asks again pays again.

    Raises:
        UserError: it is no store.
    """
    inventory = take_inventory(store)
    found = Collection(quota=quota)
    least = max(GRACE_S, (GRACE_S if quota is not None else OLDER_S) if older is None else older)
    finder = _Finder(inventory, answers, keep_last, found, least)
    candidates = list(finder.candidates())
    found.held = finder.held
    now = time.time()
    old = [one for one in candidates if now - one.modified >= (GRACE_S if one.what in ("leftover", "lock") else least)]
    # What names artifacts goes before them; of equals what was made of others stays first, as it came.
    old.sort(key=lambda one: (one.what != "earlier", one.modified))
    if quota is None:
        found.unneeded = old
    else:
        for one in old:
            if found.over:
                found.unneeded.append(one)
    return found


@dataclass
class _Finder:
    inventory: Inventory
    answers: bool
    keep_last: int
    found: Collection
    least: float
    held: int = 0
    places: dict[str, dict[str, StoredFile]] = field(default_factory=lambda: {})

    @property
    def store(self) -> Store:
        return self.inventory.store

    def candidates(self) -> Iterator[Unneeded]:
        work = {**self._work(), **self._objects()}
        places = (*(place for place in PLACES if place != "work"), ASIDE)
        stored = {f"{place}/{name}": file for place in places for name, file in listing(self.store, place).items()}
        self.held = sum(file.size for file in (*stored.values(), *work.values()))
        self.places = _by_place({**stored, **work, **self._uploads()})
        for run in self._forgotten():
            why = "what the name stood for earlier; a tag keeps it (`flywheel tag`)"
            yield self._item("earlier", f"runs/{run}.json", why)
        yield from self._artifacts()
        yield from self._scratch()
        for place in self.places:
            top, _, name = place.partition("/")
            if top == "tmp" or top == UPLOADS:
                yield self._item("leftover", place, "of a write that did not end")
            elif top == ASIDE and name not in self.inventory.repairs:
                yield self._item("set aside", place, "by a repair that is done")

    def _item(self, what: str, place: str, why: str, since: float = 0.0) -> Unneeded:
        own = self.places.get(place, {}).values()
        modified = max([since, *(file.modified for file in own)])
        return Unneeded(what, place, sum(file.size for file in own), modified or time.time(), why)

    # -- artifacts -----------------------------------------------------------------------------------------------------

    def _needed(self) -> set[str]:
        """What the runs name, or a stage that was begun takes, and all that this rests on."""
        gone = self._forgotten()
        records = {run: record for run, record in self.inventory.records.items() if run not in gone}
        roots = [folder for run in records for folder in self.inventory.named(run)]
        for record in records.values():
            roots += record.get("failed", {}).values()
            roots += [s for e in record["stages"].values() for given in e["inputs"].values() for _, s in given]
        for place, files in self.places.items():
            if place.startswith("work/") and SPEC in files:
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                    spec = json.loads((self.store.workplace() / place.removeprefix("work/") / SPEC).read_bytes())
                    roots += [source for given in spec["inputs"].values() for _, source in given]
        return set(self.inventory.closure(roots))

    def _forgotten(self) -> set[str]:
        """What names stood for so long ago that it may go, and no tag keeps."""
        return {
            run
            for run, record in self.inventory.records.items()
            if run_records.is_state(run) and not record.get(run_records.TAGS)
            if time.time() - self._item("earlier", f"runs/{run}.json", "").modified >= self.least
        }

    def _artifacts(self) -> Iterator[Unneeded]:
        inventory = self.inventory
        needed = self._needed()
        unreadable = [f"runs/{run}.json" for run in inventory.record_faults] + [
            f for f in inventory.faults if f in needed
        ]
        if unreadable:
            self.found.notes.append(
                f"{', '.join(unreadable[:3])} can't be read, and might name artifacts: these stay. `flywheel repair` comes first."
            )
            return
        spare = [f for f in [*inventory.manifests, *inventory.faults] if f not in needed]
        now = StoredFile(0, time.time())
        written = {f: self.places.get(f"artifacts/{f}", {}).get(MANIFEST, now).modified for f in spare}
        counts: Counter[str] = Counter()
        for folder in sorted(spare, key=lambda f: -written[f]):
            kind = folder.rpartition("-")[0]
            counts[kind] += kind != EXTERNAL
            if kind != EXTERNAL and counts[kind] <= self.keep_last:
                needed |= {*inventory.closure([folder])}
        # What something is made of is as young as that, and comes after it.
        for folder in reversed(inventory.closure(spare)):
            if folder in needed or folder not in written or busy(self.store, folder):
                continue
            for source in inventory.inputs(folder):
                if source in written:
                    written[source] = max(written[source], written[folder])
            yield self._item("artifact", f"artifacts/{folder}", "no run names it", written[folder])
        for folder in inventory.begun:
            if folder not in needed and not busy(self.store, folder):
                scratch = self.places.get(f"work/{folder}", {}).values()
                since = max((file.modified for file in scratch), default=0.0)
                yield self._item("unfinished", f"artifacts/{folder}", "nobody works on it", since)

    # -- the folder for work under way ---------------------------------------------------------------------------------

    def _work(self) -> dict[str, StoredFile]:
        place = self.store.workplace()
        found: dict[str, StoredFile] = {}
        for file in sorted(place.rglob("*")) if place.is_dir() else []:
            with contextlib.suppress(OSError):  # somebody has just taken it away
                told = file.lstat()
                if not file.is_dir() or file.is_symlink():
                    found[f"work/{file.relative_to(place).as_posix()}"] = StoredFile(told.st_size, told.st_mtime)
        return found

    def _objects(self) -> dict[str, StoredFile]:
        """What phases of stages under way left for the next ones, in a store elsewhere."""
        found = {} if self.store.local else listing(self.store, "work")
        return {f"work/{name.replace('/', f'/{OBJECTS}/', 1)}": file for name, file in found.items()}

    def _uploads(self) -> dict[str, StoredFile]:
        """Files that were being sent in parts to S3 when whoever sent them was killed: they are paid for, and no listing tells them."""
        if not self.store.s3:
            return {}
        found = self.store.fs.uploads(self.store.path("artifacts"))
        return {f"{UPLOADS}/{quote(key, safe='')}@{upload}": StoredFile(0, begun) for key, upload, begun in found}

    def _scratch(self) -> Iterator[Unneeded]:
        names = sorted({place.split("/")[1] for place in self.places if place.startswith("work/")})
        under_way = [name for name in names if busy(self.store, name.removesuffix(".lock"))]
        for name in names:
            if name in under_way or f"{name}.lock" in under_way:
                continue
            if name == ANSWERS:
                item = self._item("answers", f"work/{name}", "to ask again is to pay again")
                if self.answers and not under_way:
                    yield item
                else:
                    why = (
                        "stages that may ask are under way"
                        if self.answers
                        else "`--answers` takes them: asked again, they are paid again"
                    )
                    self.found.notes.append(f"Answers of servers, {in_bytes(item.size)}, stay ({why}).")
            elif name == COPIES:
                if not under_way:
                    for folder in [place.split("/")[2] for place in self.places if place.startswith(f"work/{COPIES}/")]:
                        yield self._item("copy", f"work/{COPIES}/{folder}", "of what the store has")
            elif name.endswith(".lock"):
                yield self._item("lock", f"work/{name}", "nobody holds it")
            elif any(path.startswith(f"{BEFORE}/") for path in self.places[f"work/{name}"]):
                self.found.notes.append(
                    f"work/{name} holds an artifact that was being made anew: the next run, or repair, goes on."
                )
            else:
                done = name in self.inventory.manifests
                why = "of a stage that is done" if done else "of a stage that stopped: it would begin anew"
                yield self._item("scratch", f"work/{name}", why)


def _by_place(files: dict[str, StoredFile]) -> dict[str, dict[str, StoredFile]]:
    """Files by the folder, or file, that goes as a whole."""
    found: dict[str, dict[str, StoredFile]] = {}
    for path, file in files.items():
        parts = path.split("/")
        depth = 3 if parts[:2] == ["work", COPIES] else 2
        found.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = file
    return found


def remove(store: Store, unneeded: Unneeded) -> bool:
    """Take something away, whole or not at all. False where somebody works on it, or needs it, by now.

    Raises:
        UserError: the file system refuses.
    """
    try:
        return _remove(store, unneeded)
    except FileNotFoundError:  # somebody else was faster
        return False
    except OSError as error:
        raise UserError(f"{unneeded.place} can't be removed: {error.strerror or error}.") from None


def _remove(store: Store, unneeded: Unneeded) -> bool:
    if unneeded.what == "copy":
        return cache.drop_view(store.workplace() / unneeded.place.removeprefix("work/"))
    if unneeded.place.startswith(f"{UPLOADS}/"):
        key, _, upload = unneeded.place.removeprefix(f"{UPLOADS}/").partition("@")
        store.fs.abort(unquote(key), upload)
        return True
    if unneeded.what in ("earlier", "answers", "leftover", "set aside"):
        _remove_whole(store, unneeded.place)
        return True
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(claim(store, unneeded.folder))
        except Busy:
            return False
        if unneeded.what in ("artifact", "unfinished") and _is_named(store, unneeded.folder):
            return False
        if unneeded.what == "unfinished" and store.exists("artifacts", unneeded.folder, MANIFEST):
            return False
        if unneeded.what != "lock":
            _remove_whole(store, unneeded.place)
    with contextlib.suppress(OSError):
        (store.workplace() / unneeded.folder).rmdir()  # the lock's; empty, or it stays
    return True


def _is_named(store: Store, folder: str) -> bool:
    records = [run_records.read(store, run) or {} for run in run_records.names(store)]
    return any(entry["artifact"] == folder for record in records for entry in record.get("stages", {}).values())


def _remove_whole(store: Store, place: str) -> None:
    if place.startswith("work/"):
        if not store.local:
            store.delete_folder(*place.split("/"))
        local = store.workplace() / place.removeprefix("work/")
    elif store.local:
        local = Path(store.path(place))
        if place.startswith("artifacts/"):  # out of sight in one step
            hidden = Path(store.path("tmp", uuid.uuid4().hex))
            hidden.parent.mkdir(exist_ok=True)
            local.replace(hidden)
            local = hidden
    else:
        parts = tuple(place.split("/"))
        store.delete([parts, (*parts, MANIFEST)])  # without it there is no artifact
        store.delete_folder(*parts)
        return
    if local.is_symlink() and local.is_dir():  # on another disk
        shutil.rmtree(local.resolve())
        local.unlink()
    elif local.is_dir():
        shutil.rmtree(local)
    else:
        local.unlink(missing_ok=True)


def in_bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def in_time(past: float) -> str:
    for unit, length in reversed(UNITS.items()):
        if past >= length and unit != "w":
            return f"{past // length:.0f} {unit}"
    return "0 s"
