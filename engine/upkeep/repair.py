"""What is damaged is made anew: that, and what was made of damage, and nothing else.

An artifact's key says what it was made of, so that the same bytes come again. The old one is set aside (`aside/`) until the new
one is there, and comes back where that fails; a note (`repairs/`) lets a repair that was killed go on. What was made of an
artifact follows only where the new one has another digest than they recorded.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import FlywheelError, UserError
from engine.execution.one_stage import View
from engine.execution.runner import make
from engine.plan.inputs import External
from engine.stage.job import SUMMARY
from engine.store.artifact import MANIFEST, Artifact
from engine.store.digest import digest_json
from engine.store.schema import DATASETS
from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.store.writer import CARD, ArtifactWriter, Contents
from engine.text.visible import visible
from engine.upkeep.inventory import ASIDE, EXTERNAL, REPAIRS, Inventory, claim, is_entry, read_manifest, take_inventory
from engine.upkeep.making import (
    Making,
    config_of,
    external,
    making_of,
    planned,
    raw_manifest,
    read_note,
    recorded_digests,
)
from engine.upkeep.verification import Damage, Tell, Verifier
from engine.view.card import card

_ENTRY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*(?=\{\s*"artifact")')


@dataclass(frozen=True)
class Mended:
    """What became of one damaged thing: whether it is well now, and in words how, or why not."""

    what: str
    name: str
    well: bool
    told: str

    def __str__(self) -> str:
        called = f" ({self.name})" if self.name not in (self.what, "") else ""
        return visible(f"{'✓' if self.well else '✗'} {self.what}{called}: {self.told}")


def repair(
    store: Store,
    name: str | None = None,
    *,
    base: Path | None = None,
    dry_run: bool = False,
    view: Callable[[], View] | None = None,
    tell: Tell = lambda done, total: None,
    say: Callable[[Mended], None] = lambda mended: None,
) -> list[Mended]:
    """Find what is damaged, as `verify` does, and put it right.

    Args:
        base: the recipe's folder, where that can't be found.
        dry_run: tell what would be done, and do nothing.
        view: watches the stages that are made again.
        say: is told of each thing as it is done.

    Raises:
        UserError: it is no store, or holds nothing of this name.
    """
    inventory = take_inventory(store)
    runs, folders = inventory.scope(name)
    found = Verifier(inventory, tell).verify(runs, folders, everything=name is None)
    mender = _Mender(inventory, base, dry_run, view, say)
    for damage in found.damage:
        if damage.remedy == "record":
            mender.record(damage)
        elif damage.remedy == "aside":
            mender.set_file_aside(damage)
        elif damage.remedy == "beside":
            mender.leave_out(damage)
        elif damage.remedy == "none":
            mender.done(damage, False, f"{damage.what}. What heals it: {damage.heal}")
    anew: dict[str, list[Damage]] = {}
    for damage in found.damage:
        if damage.remedy == "anew":
            anew.setdefault(damage.artifact, []).append(damage)
    for folder in inventory.repairs:
        if folder in folders or name is None:
            anew.setdefault(folder, [])
    mender.artifacts(anew)
    return mender.mended


@dataclass
class _Mender:
    inventory: Inventory
    base: Path | None
    dry_run: bool
    view: Callable[[], View] | None
    say: Callable[[Mended], None]
    mended: list[Mended] = field(default_factory=lambda: [])

    @property
    def store(self) -> Store:
        return self.inventory.store

    def done(self, what: Damage | str, well: bool, told: str) -> None:
        place, name = (what, self.inventory.title(what)) if isinstance(what, str) else (what.artifact, what.name)
        if isinstance(what, Damage) and what.file:
            place = f"{place}/{what.file}"
        self.mended.append(Mended(place, name, well, told))
        self.say(self.mended[-1])

    # -- records and single files ----------------------------------------------------------------------------------------

    def record(self, damage: Damage) -> None:
        """Rebuild a run's record from those of its entries whose identity gives the artifact that they name."""
        name = damage.name
        text = self.store.read("runs", f"{name}.json").decode(errors="replace")
        stages: dict[str, Any] = {}
        for match in _ENTRY.finditer(text):
            entry = None
            with contextlib.suppress(ValueError):
                entry, _ = json.JSONDecoder().raw_decode(text, match.end())
            named = re.match(r'\{\s*"artifact"\s*:\s*"([^"]*)"', text[match.end() :])
            if not is_entry(entry) and named:
                entry = self._entry(named[1])
            if is_entry(entry):
                stages[json.loads(f'"{match[1]}"', strict=False)] = entry
        again = "Running its recipe writes it as it was: what is in the store is cached"
        if not stages:
            self.done(damage, False, f"nothing of it can be believed. {again}")
            return
        told = f"the entries of {', '.join(stages)} can be believed, and {'would stay' if self.dry_run else 'are kept'}. {again}"
        if not self.dry_run:
            self._move(f"runs/{name}.json", f"{ASIDE}/runs/{name}.json")
            recipe = re.search(r'"recipe"\s*:\s*("[^"\\]*")', text)
            record = {"recipe": json.loads(recipe[1]) if recipe else f"{name}.yaml", "stages": stages}
            self.store.put(sealed(record), "runs", f"{name}.json")
            self.inventory.records[name] = record
            del self.inventory.record_faults[name]
        self.done(damage, True, told)

    def _entry(self, folder: str) -> dict[str, Any] | None:
        """What the record of a run says of a finished artifact, out of its manifest."""
        manifest = self.inventory.manifests.get(folder)
        return manifest and {
            "artifact": folder,
            "kind": manifest["stage"]["kind"],
            "identity": manifest["identity"],
            "inputs": {p: [[e["name"], e["artifact"]] for e in entries] for p, entries in manifest["inputs"].items()},
        }

    def set_file_aside(self, damage: Damage) -> None:
        inside = f"{damage.artifact}/{damage.file}"
        target = f"{ASIDE}/{inside}"
        told = f"{damage.what}; {'would be' if self.dry_run else 'is'} set aside as {target}"
        if not self.dry_run:
            if damage.artifact.startswith("work/"):
                source, place = self.store.workplace() / damage.artifact.removeprefix("work/"), self.store.workplace()
                kept = place.parent / target if self.store.local else place / target
                kept.parent.mkdir(parents=True, exist_ok=True)
                for end in ("", "-wal", "-shm"):  # a database's journal would be played into the next one
                    if (source / f"{damage.file}{end}").exists():
                        (source / f"{damage.file}{end}").replace(kept.with_name(kept.name + end))
            else:
                self._move(f"artifacts/{inside}", target)
        self.done(damage, True, told)

    def leave_out(self, damage: Damage) -> None:
        """A card is written again; of a log nothing but its name is known."""
        again = damage.file == CARD
        if not self.dry_run and damage.artifact in self.inventory.manifests:
            manifest = {k: v for k, v in self.inventory.manifests[damage.artifact].items() if k != "beside"}
            if self.store.exists("artifacts", damage.artifact, *damage.file.split("/")):
                self._move(f"artifacts/{damage.artifact}/{damage.file}", f"{ASIDE}/{damage.artifact}/{damage.file}")
            text = card(self.store, damage.artifact, manifest) if again else None
            ArtifactWriter(self.store, damage.artifact).seal(manifest, text)
            self.inventory.manifests[damage.artifact] = read_manifest(self.store, damage.artifact)
        self.done(damage, True, f"{damage.what}; {'written again' if again else 'left out: nothing is made of it'}")

    def _move(self, source: str, target: str) -> None:
        """Within the store; what a former repair left in that place goes."""
        fs = self.store.fs
        if fs.exists(self.store.path(target)):
            fs.rm(self.store.path(target), recursive=True)
        if self.store.local:
            kept = Path(self.store.path(target))
            kept.parent.mkdir(parents=True, exist_ok=True)
            Path(self.store.path(source)).replace(kept)
        else:
            names = [f"/{name}" for name in self.store.walk(source)] or [""]
            for name in names:
                fs.copy(self.store.path(source + name), self.store.path(target + name))
            for name in sorted(names, key=lambda name: name != f"/{MANIFEST}"):  # without it there is no artifact
                fs.rm_file(self.store.path(source + name))

    # -- artifacts ---------------------------------------------------------------------------------------------------------

    def artifacts(self, anew: dict[str, list[Damage]]) -> None:
        """Make these anew, what something is made of before it, and what turns out to be made of damage."""
        lost: set[str] = set()
        inventory = self.inventory
        for folder in inventory.closure([*inventory.manifests, *inventory.faults, *anew]):
            if folder not in anew:
                continue
            waits = [source for source in inventory.inputs(folder) if source in lost]
            if waits:
                lost.add(folder)
                self.done(
                    folder,
                    False,
                    f"it is made of {', '.join(map(inventory.title, waits))}, which could not be made anew",
                )
                continue
            try:
                self._artifact(folder, anew)
            except (FlywheelError, OSError, ValueError, ImportError) as error:
                lost.add(folder)
                self.done(folder, False, f"it can't be made anew: {error}")

    def _artifact(self, folder: str, anew: dict[str, list[Damage]]) -> None:
        note = read_note(self.store, folder)
        if note and folder in self.inventory.manifests and not anew[folder]:  # it was done, up to its last words
            if not self.dry_run:
                self._forget(folder)
            self.done(
                folder, True, "is there; what an earlier repair had left is gone" if not self.dry_run else "is there"
            )
            return
        known = self.inventory.manifests.get(folder)
        digest = known["digest"] if known else note["digest"] if note else None
        digests = {digest} if digest else recorded_digests(self.inventory, folder)
        damaged = {damage.file for damage in anew[folder]}
        if folder.startswith(f"{EXTERNAL}-"):
            source, making = external(self.inventory, folder, self.base), None
            place = source.place or source.origin.get("path")
            how = f"read again from {place}"
        else:
            source, making = None, making_of(self.inventory, folder, self.base)
            if making is None:
                raise UserError(
                    "nothing that can be believed tells how it was made. Run the recipe that made it again; if nobody needs it, remove "
                    f"{self.store.path('artifacts', folder)}."
                )
            there = all(s in self.inventory.manifests for given in making.inputs.values() for _, s in given)
            if (
                known is None
                and there
                and damaged <= {MANIFEST, ""}
                and (whole := self._whole(folder, making, digests))
            ):
                if not self.dry_run:
                    self._write_manifest(folder, making, whole)
                self.done(
                    folder,
                    True,
                    f"its files are whole; its manifest {'would be' if self.dry_run else 'is'} written again",
                )
                return
            how = f"made anew by `{making.kind}`"
        stage = planned(self.inventory, making, folder, self.base) if making else None
        if self.dry_run:
            self.done(folder, True, f"{self._why(anew[folder])}; would be {how}")
            return
        with claim(self.store, folder) as held:
            self._set_aside(folder, making, digest, note)
            try:
                if source:
                    made = source.adopt(self.store)
                else:
                    assert stage
                    made = make(self.store, stage[0], held, stage[1], self.view() if self.view else None)
            except Exception:
                self._bring_back(folder)
                raise
            self._forget(folder)
        self.inventory.manifests[folder] = read_manifest(self.store, folder)
        self.inventory.faults.pop(folder, None)
        self.done(folder, True, f"{self._why(anew[folder])}; {how}{self._compare(made, digests, known, source, anew)}")

    def _why(self, damage: list[Damage]) -> str:
        if not damage:
            return "a repair of it was begun"
        first = damage[0]
        more = f", and {len(damage) - 1} more" if len(damage) > 1 else ""
        return f"{first.file + ' ' if first.file else ''}{first.what}{more}"

    def _compare(
        self, made: Artifact, digests: set[str], known: Any, source: External | None, anew: dict[str, list[Damage]]
    ) -> str:
        """Whether it is what it was, in words. Where not, what was made of the old one is to follow."""
        if source and known and _digests_of(known) != _digests_of(made.manifest):
            return "; the same rows, in other bytes than before (other versions of libraries)"
        if not digests:
            return "; nothing tells which digest it had"
        if digests == {made.digest}:
            return "; it is what it was"
        followers = [name for name in self.inventory.made_of(made.id) if self._took(name, made.id) != {made.digest}]
        for name in followers:
            anew.setdefault(name, []).append(
                Damage(
                    name, self.inventory.title(name), f"was made of other bytes of {self.inventory.title(made.id)}", ""
                )
            )
        if made.digest in digests:
            return "; it is what some took, and not what others did: these follow"
        before, now = (known or {}).get("packages", {}), made.manifest["packages"]
        differ = [
            f"{n} {before.get(n, 'none')} -> {now.get(n, 'none')}"
            for n in sorted({*before, *now})
            if before.get(n) != now.get(n)
        ]
        why = f" ({', '.join(differ)})" if before and differ else ""
        follow = (
            f" What was made of it follows: {', '.join(map(self.inventory.title, followers))}." if followers else ""
        )
        return f"; it is NOT what it was: other bytes than before{why}.{follow}"

    def _took(self, name: str, source: str) -> set[str]:
        entries = self.inventory.manifests[name]["inputs"].values()
        return {entry["digest"] for given in entries for entry in given if entry["artifact"] == source}

    # -- the old one -------------------------------------------------------------------------------------------------------

    def _set_aside(self, folder: str, making: Making | None, digest: str | None, note: dict[str, Any] | None) -> None:
        """Make room. A repair that was killed has done so, and what it made since then stays."""
        if note and note["aside"] and not self.store.exists("artifacts", folder, MANIFEST):
            return
        if note and self.store.exists(ASIDE, folder) and not self.store.exists("artifacts", folder, MANIFEST):
            ArtifactWriter(self.store, folder).discard()  # it is aside; what is left of it here was to go
        self._note(folder, making, digest, aside=False)
        if self.store.exists("artifacts", folder):
            self._move(f"artifacts/{folder}", f"{ASIDE}/{folder}")
        self._note(folder, making, digest, aside=True)

    def _note(self, folder: str, making: Making | None, digest: str | None, aside: bool) -> None:
        told = {"making": making and asdict(making), "digest": digest, "aside": aside, "at": time.time()}
        self.store.put(json.dumps(told).encode(), REPAIRS, f"{folder}.json")

    def _bring_back(self, folder: str) -> None:
        ArtifactWriter(self.store, folder).discard()
        if self.store.exists(ASIDE, folder):
            self._move(f"{ASIDE}/{folder}", f"artifacts/{folder}")
        self._forget(folder)

    def _forget(self, folder: str) -> None:
        for parts in ((ASIDE, folder), (REPAIRS, f"{folder}.json")):
            if self.store.exists(*parts):
                self.store.fs.rm(self.store.path(*parts), recursive=True)

    # -- a manifest alone --------------------------------------------------------------------------------------------------

    def _whole(self, folder: str, making: Making, digests: set[str]) -> Contents | None:
        """What the folder holds, if that is proven to be what it held: by its digest, which others recorded, or which the
        damaged manifest names along with those of all files."""
        if not self.store.exists("artifacts", folder) or self.store.exists(ASIDE, folder):
            return None
        raw = raw_manifest(self.store, folder) or {}
        try:
            if digest_json({name: entry["sha256"] for name, entry in raw["files"].items()}) == raw["digest"]:
                digests = digests | {raw["digest"]}
        except (KeyError, TypeError, AttributeError):
            pass
        if not digests:
            return None
        try:
            found = ArtifactWriter(self.store, folder).contents()
        except (OSError, ValueError, KeyError):
            return None
        return found if found.digest in digests else None

    def _write_manifest(self, folder: str, making: Making, whole: Contents) -> None:
        writer = ArtifactWriter(self.store, folder)
        raw = raw_manifest(self.store, folder) or {}
        sources = {port: [self.inventory.manifests[s] for _, s in given] for port, given in making.inputs.items()}
        gives = config_of(making).output({port: [m["schema"] for m in given] for port, given in sources.items()})
        writer.seal({
            "format": 1,
            "key": digest_json(making.identity),
            "base": making.base,
            "identity": making.identity,
            "seed": making.config.get("seed"),
            "stage": {"kind": making.kind, "version": making.identity["version"], "config": making.config},
            "inputs": {
                port: [{"name": label, "artifact": s, "digest": m["digest"]} for (label, s), m in zip(given, sources[port], strict=True)]
                for port, given in making.inputs.items()
            },
            "packages": _table(raw.get("packages")),
            "kind": "dataset" if gives in DATASETS else "model",
            "schema": gives,
            "rows": whole.rows,
            "rejected": dict(sorted(whole.reasons.items())),
            "failed": whole.failed,
            "files": whole.files,
            "digest": whole.digest,
            "summary": json.loads(writer.read_file(SUMMARY)) if SUMMARY in whole.files else {},
            "timings": _table(raw.get("timings")),
        })  # fmt: skip
        self.inventory.manifests[folder] = read_manifest(self.store, folder)
        self.inventory.faults.pop(folder, None)


def _digests_of(manifest: dict[str, Any]) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
