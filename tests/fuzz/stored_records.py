"""Manifests and records of runs, as `status` and `Store.get` meet them."""

from __future__ import annotations

from pathlib import Path

from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.view.status import status_of

MANIFEST = {
    "key": "0" * 64, "digest": "0" * 64, "identity": {}, "seed": None, "stage": {"kind": "external", "version": 1, "config": {}}, "kind": "dataset",
    "inputs": {}, "packages": {}, "schema": "Document", "rows": 0, "files": {}, "rejected": {}, "failed": 0, "timings": {}, "summary": {},
}  # fmt: skip


def seeds() -> list[bytes]:
    run = {"recipe": "r.yaml", "stages": {"a": {"artifact": "a-1", "kind": "read", "key": "0" * 64}}}
    return [b"m" + sealed(dict(MANIFEST)), b"r" + sealed(run)]


def attempt(data: bytes, folder: Path) -> None:
    """The first byte says which of both it is; the other is whole."""
    manifest, run = seeds()
    manifest, run = (manifest, data) if data[:1] == b"r" else (data, run)
    store = folder / "store"
    for name, held in (("artifacts/a-1/manifest.json", manifest), ("runs/r.json", run)):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(held[1:])
    opened = Store(str(store))
    opened.get("a-1")
    status_of(opened)
