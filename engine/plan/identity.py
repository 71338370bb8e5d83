"""The key of a stage: a digest of exactly what changes the bytes of its result.

In: the stage's kind and code version, the fields of its configuration that are part of its identity, the run's seed if
it draws random numbers, the digests of the files it reads from outside the store, and the keys of its inputs.
Of a stage kind that is not ours, its code as well: ours say by `version` when their bytes change, others may forget.
Out: names, paths, comments, hardware, worker counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from engine.stage.stage import Stage
from engine.store.digest import digest_json
from engine.store.store import KEY_LENGTH
from engine.user_code import ROOMS, package_digests


def identify(
    kind: str, config: Stage, inputs: dict[str, list[tuple[str, str]]], base: str | Path = "."
) -> dict[str, Any]:
    """What a stage's result depends on, as JSON; `key_of` digests it and `plan --why` compares it.

    Args:
        inputs: port -> (label, key) of each input, in order. Labels count only where the port says so.
    """
    takes = type(config).takes
    return {
        "kind": kind,
        "version": type(config).version,
        "config": config.identity(),
        "sources": sources(config, base),
        "inputs": {
            port: [[label, key] if takes[port].labelled else [key] for label, key in given]
            for port, given in sorted(inputs.items())
            if given
        },
    }


def sources(config: Stage, base: str | Path) -> dict[str, str]:
    """Digests of all that lies outside the store and goes into the result: the files that a stage reads, its code if it isn't ours."""
    code: dict[str, str] = {}
    for module in dict.fromkeys((type(config).__module__, config.work.partition(":")[0])):
        if module.partition(".")[0] not in ("", *ROOMS):
            code |= package_digests(module)
    return {**code, **config.sources(str(base))}


def key_of(identity: dict[str, Any]) -> str:
    return digest_json(identity)


def folder_of(kind: str, key: str) -> str:
    """The artifact's folder: readable by kind, unique by key."""
    return f"{kind}-{key[:KEY_LENGTH]}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of two identities of a stage is not the same, in words; inputs, which have identities of their own, left out."""
    if old["kind"] != new["kind"]:
        return [f"kind: {old['kind']} -> {new['kind']}"]
    told: list[str] = []
    if old["version"] != new["version"]:
        told.append(f"code version: {old['version']} -> {new['version']}")
    told += _changed("", old["config"], new["config"])
    was, now = old["sources"], new["sources"]
    if files := sorted(name for name in {*was, *now} if was.get(name) != now.get(name)):
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        told.append(f"files changed: {', '.join(files[:3])}{more}")
    return told


def _changed(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast(dict[str, Any], old), cast(dict[str, Any], new)
        return [
            line
            for key in sorted({*before, *after})
            for line in _changed(f"{path}.{key}" if path else key, before.get(key), after.get(key))
        ]
    return [] if old == new else [f"{path}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
