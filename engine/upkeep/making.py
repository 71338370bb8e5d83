"""How an artifact was made, as far as that is known: enough to make it again.

Whatever tells it (its manifest, even a damaged one; the records of runs; what the stage was asked to do) is believed only if it
gives the key that the artifact's folder is named by.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.plan.identity import folder_of, identify, key_of, sources
from engine.plan.inputs import External, PlainInput, resolve
from engine.plan.plan import Planned
from engine.plan.recipe import Step
from engine.stage.stage import Stage, load
from engine.store.artifact import MANIFEST
from engine.store.schema import KINDS
from engine.store.store import Store
from engine.upkeep.inventory import EXTERNAL, REPAIRS, Inventory, Manifest, given
from engine.view.unfinished import SPEC


@dataclass(frozen=True)
class Making:
    """
    Attributes:
        inputs: port -> (label, folder) of each.
        base: the recipe's folder, where that is known.
    """

    kind: str
    config: dict[str, Any]
    identity: dict[str, Any]
    inputs: dict[str, list[tuple[str, str]]]
    base: str | None = None


def making_of(inventory: Inventory, folder: str, base: Path | None = None) -> Making | None:
    """How a stage made this artifact; None where nothing that can be believed tells it.

    Args:
        base: where to look for files that it read, where the digests of these are lost.
    """
    for told in _accounts(inventory, folder):
        try:
            making = Making(
                folder.rpartition("-")[0],
                told["config"] if "config" in told else told["identity"]["config"],
                told.get("identity", {}),
                _inputs(inventory, told),
                told.get("base"),
            )
            if folder_of(making.kind, key_of(making.identity)) != folder:
                making = _identified(inventory, making, folder, base)
            if making and _fits(making):
                return making
        except (KeyError, TypeError, ValueError, AttributeError, UserError, ImportError):
            continue
    return None


def _inputs(inventory: Inventory, told: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """What goes in; where that is lost, the artifacts whose keys the identity names."""
    if "inputs" in told:
        return {port: [(str(label), str(s)) for label, s in entries] for port, entries in told["inputs"].items()}
    by_key = {m["key"]: folder for folder, m in inventory.manifests.items()}
    named = {
        port: [(entry[0], by_key[entry[-1]]) for entry in entries]
        for port, entries in told["identity"]["inputs"].items()
    }
    return {port: [(folder if label in by_key else label, folder) for label, folder in n] for port, n in named.items()}


def _identified(inventory: Inventory, making: Making, folder: str, base: Path | None) -> Making | None:
    """The same with the identity that its configuration and inputs give, if that gives the folder's key."""
    config = config_of(making)
    keys = {p: [(label, inventory.manifests[s]["key"]) for label, s in given] for p, given in making.inputs.items()}
    for where in _bases(inventory, base, making.base):
        try:
            identity = identify(making.kind, config, keys, where)
        except (UserError, OSError, ValueError):
            continue
        if folder_of(making.kind, key_of(identity)) == folder:
            return replace(making, identity=identity)
    return None


def _fits(making: Making) -> bool:
    """Whether the configuration is the one that the identity tells."""
    return config_of(making).identity() == making.identity["config"]


def config_of(making: Making) -> Stage:
    """
    Raises:
        UserError: there is no such kind. ValueError: it has other fields now.
    """
    return load(making.kind).model_validate(making.config)


def _accounts(inventory: Inventory, folder: str) -> Iterator[dict[str, Any]]:
    """Everything that says how an artifact was made, the best known first."""
    store = inventory.store
    for manifest in (inventory.manifests.get(folder), raw_manifest(store, folder)):
        if manifest is not None:
            yield _of_manifest(manifest)
    if note := read_note(store, folder):
        yield note["making"] or {}
    for record in inventory.records.values():
        for entry in record["stages"].values():
            if entry["artifact"] == folder:
                yield {**entry}
    try:
        yield json.loads((store.workplace() / folder / SPEC).read_bytes())
    except (OSError, ValueError):
        return


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    told = {name: manifest[name] for name in ("identity", "base") if name in manifest}
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        told["config"] = manifest["stage"]["config"]
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        entries = manifest["inputs"].items()
        told["inputs"] = {port: [(e["name"], e["artifact"]) for e in given] for port, given in entries}
    return told


def raw_manifest(store: Store, folder: str) -> Manifest | None:
    """What can be read of a manifest, whatever its seal says, field by field; None if that is nothing."""
    try:
        text = store.read("artifacts", folder, MANIFEST).decode(errors="replace")
    except OSError:
        return None
    found: Manifest = {}
    for match in re.finditer(r'^ "(\w+)": ', text, re.MULTILINE):  # as they are indented
        with contextlib.suppress(ValueError, RecursionError):
            found[match[1]] = json.JSONDecoder().raw_decode(text, match.end())[0]
    return found or None


def read_note(store: Store, folder: str) -> dict[str, Any] | None:
    """The note of a repair that was begun: `making` (of a stage), `digest` that the artifact had, `aside`: whether the old one is."""
    try:
        note = store.read_json(REPAIRS, f"{folder}.json")
        return note if note and {"making", "digest", "aside"} <= note.keys() else None
    except (OSError, ValueError):
        return None


def planned(inventory: Inventory, making: Making, folder: str, base: Path | None) -> tuple[Planned, Path]:
    """The stage as a plan has it, on inputs of the store, and the folder that its files are relative to.

    Args:
        base: where to look first for the files that it reads.

    Raises:
        UserError: something that it was made of is not there any more: an input, a file, the code.
    """
    config = config_of(making)
    if (version := type(config).version) != making.identity["version"]:
        raise UserError(
            f"`{making.kind}` is at version {version} here and was at {making.identity['version']}: it gives other bytes. "
            "Install the Flywheel that made it, or run the recipe again."
        )
    inputs: dict[str, list[tuple[str, Planned | External]]] = {}
    for port, entries in making.inputs.items():
        for label, source in entries:
            manifest = inventory.manifests.get(source)
            if manifest is None:
                raise UserError(f"it is made of `{label}` ({source}), which is not there.")
            inputs.setdefault(port, []).append((label, External(label, manifest["schema"], manifest["key"], source)))
    gives = config.output({port: [source.kind for _, source in entries] for port, entries in inputs.items()})  # pyright: ignore[reportAttributeAccessIssue]
    step = Step(inventory.title(folder).rpartition("/")[2], making.kind, config, None, 0)
    where = _find_base(inventory, making, config, base)
    return Planned(step, inputs, making.identity, key_of(making.identity), gives, False), where


def _bases(inventory: Inventory, first: Path | None, own: str | None) -> list[Path]:
    """Folders in which a recipe may stand: the one that is said, the one it stood in, those of other artifacts, this one, the store's."""
    told = [own, *(manifest.get("base") for manifest in inventory.manifests.values())]
    told += [(manifest.get("origin") or {}).get("base") for manifest in inventory.manifests.values()]
    around = [Path.cwd(), *([Path(inventory.store.root).parent] if inventory.store.local else [])]
    folders = [*([first] if first else []), *(Path(one) for one in told if isinstance(one, str)), *around]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _find_base(inventory: Inventory, making: Making, config: Stage, first: Path | None) -> Path:
    wanted: dict[str, str] = making.identity["sources"]
    looked, differ = list[Path](), sorted(wanted)
    for folder in _bases(inventory, first, making.base):
        try:
            found = sources(config, folder)
        except (UserError, OSError, ValueError):
            looked.append(folder)
            continue
        if found == wanted:
            return folder
        looked.append(folder)
        changed = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        differ = min(differ, changed, key=len)
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    digest = f" (SHA-256 {wanted[differ[0]][:12]}...)" if differ and differ[0] in wanted else ""
    raise UserError(
        f"it needs {', '.join(differ[:3])}{more} as it was when it was made{digest}; looked in {', '.join(map(str, looked[:4]))}. "
        "Put that back, and say with `--base FOLDER` where the recipe is if it is elsewhere."
    )


def external(inventory: Inventory, folder: str, base: Path | None) -> External:
    """The input that no stage made, found again where it was.

    Raises:
        UserError: nothing that is there now gives its key.
    """
    names: dict[str, None] = {}
    for wanted, own, accepts in _places(inventory, folder):
        names[wanted.path] = None
        for where in _bases(inventory, base, own):
            try:
                found = resolve(wanted, where, accepts, inventory.store)
            except (UserError, OSError, ValueError):
                continue
            if found.folder == folder:
                return found
    if {*names} == {"rows"}:
        raise UserError("a program brought its rows: `flywheel.from_rows` with the same rows brings them back.")
    if not names:
        raise UserError("nothing tells where it came from. Running the recipe that takes it brings it back.")
    raise UserError(
        f"it came from {', '.join(names)}, which is not there any more, or is not what it was. Put that back (`--base FOLDER` says "
        "what it is relative to), or run the recipe again with what is there now."
    )


def _places(inventory: Inventory, folder: str) -> Iterator[tuple[PlainInput, str | None, tuple[str, ...]]]:
    """Where an input may have come from, relative to what, and which kinds it may be."""
    for manifest in (inventory.manifests.get(folder), raw_manifest(inventory.store, folder)):
        try:
            if manifest is not None and manifest["stage"]["kind"] == EXTERNAL:
                kinds = (manifest["schema"],) if manifest["schema"] in KINDS else KINDS
                if origin := manifest.get("origin"):
                    fields = {name: value for name, value in origin.items() if name != "base"}
                    yield PlainInput(**fields), origin.get("base"), kinds
                if place := manifest.get("external"):
                    yield PlainInput(str(place)), None, kinds
                yield PlainInput(str(manifest["stage"]["config"]["name"])), None, kinds
        except (KeyError, TypeError, AttributeError):
            continue
    takers = [(m["stage"]["kind"], port, entry["name"], m.get("base")) for m in inventory.manifests.values()
              for port, entries in m["inputs"].items() for entry in entries if entry["artifact"] == folder]  # fmt: skip
    for record in inventory.records.values():
        takers += [(entry["kind"], port, label, None) for entry in record["stages"].values()
                   for port, entries in entry["inputs"].items() for label, source in entries if source == folder]  # fmt: skip
    for kind, port, label, own in dict.fromkeys(takers):
        try:
            yield PlainInput(label), own, load(kind).takes[port].kinds
        except (UserError, KeyError, ImportError):
            continue


def recorded_digests(inventory: Inventory, folder: str) -> set[str]:
    """The digests under which others took this artifact."""
    return {entry["digest"] for m in inventory.manifests.values() for entry in given(m) if entry["artifact"] == folder}
