"""Manifests and records of runs, as `Store.get`, `status` and `verify` meet them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.upkeep.verification import verify
from engine.view.status import spent_by_run, status_of

FOLDER = f"external-{'0' * 16}"
MANIFEST = {
    "key": "0" * 64, "digest": "0" * 64, "identity": {}, "seed": None, "stage": {"kind": "external", "version": 1, "config": {}}, "kind": "dataset",
    "inputs": {"documents": [{"name": "a", "artifact": "read-" + "1" * 16, "digest": "0" * 64}]}, "packages": {"p": "1"}, "schema": "Document",
    "rows": 0, "files": {"data/0.parquet": {"sha256": "0" * 64, "bytes": 1, "rows": 0}}, "rejected": {"r": 1}, "failed": 0,
    "timings": {"wall_s": 1.0, "spent": {"m": {"tokens_in": 1, "tokens_out": 1, "cost": 0.0}}}, "summary": {},
}  # fmt: skip


def seeds() -> list[bytes]:
    run = {"recipe": "r.yaml", "stages": {"a": {"artifact": FOLDER, "kind": "read", "key": "0" * 64}}}
    # Those of before there were seals are read as they are, whatever they say.
    plain = [
        mark + json.dumps(one).encode() for mark, whole in ((b"m", MANIFEST), (b"r", run)) for one in changed(whole)
    ]
    return [b"m" + sealed(dict(MANIFEST)), b"r" + sealed(run), *plain]


def changed(record: Any) -> Iterator[Any]:
    """A record, and those that lack one field of it, or have something else there, at any depth."""
    yield record
    if not isinstance(record, dict):
        return
    fields = cast(dict[str, Any], record)
    for name, value in fields.items():
        yield {other: fields[other] for other in fields if other != name}
        for instead in (None, [], {}, "x", 7, *itertools.islice(changed(value), 1, None)):
            yield {**fields, name: instead}


def attempt(data: bytes, folder: Path) -> None:
    """The first byte says which of both it is; the other is whole."""
    manifest, run, *_ = seeds()
    manifest, run = (manifest, data) if data[:1] == b"r" else (data, run)
    store = folder / "store"
    for name, held in ((f"artifacts/{FOLDER}/manifest.json", manifest), ("runs/r.json", run)):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(held[1:])
    opened = Store(str(store))
    opened.get(FOLDER)
    status_of(opened)
    spent_by_run(opened)
    verify(opened)
