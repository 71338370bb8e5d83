"""The key of a stage: a digest of exactly what changes the bytes of its result.

In: the stage's kind and code version, the fields of its configuration that are part of its identity, the run's seed if
it draws random numbers, the digests of the files it reads from outside the store, and the keys of its inputs.
Out: names, paths, comments, hardware, worker counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.stage.stage import Stage
from engine.store.digest import digest_json
from engine.store.store import KEY_LENGTH


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
        "sources": config.sources(str(base)),
        "inputs": {
            port: [[label, key] if takes[port].labelled else [key] for label, key in given]
            for port, given in sorted(inputs.items())
            if given
        },
    }


def key_of(identity: dict[str, Any]) -> str:
    return digest_json(identity)


def folder_of(kind: str, key: str) -> str:
    """The artifact's folder: readable by kind, unique by key."""
    return f"{kind}-{key[:KEY_LENGTH]}"
