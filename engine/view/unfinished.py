"""A stage that failed, or is under way, as far as it came: its rows, those that did not make it, its error, its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.stage.job import SUMMARY
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.store.writer import ArtifactWriter

# In the scratch folder of a stage: what it was asked to do, what went wrong, what was printed, how far it is.
SPEC, FAILED, LOG, PROGRESS = "spec.json", "failed.json", "stage.log", "progress.json"


def find(store: Store, name: str) -> Artifact:
    """An artifact by its name. A stage that has failed since, or is not finished, comes as far as it is.

    Its manifest has `unfinished` then: `error` (if it failed), `at` (seconds since 1970) and `log`.

    Raises:
        UserError: as for `Store.find`.
    """
    run, _, stage = name.rpartition("/")
    records = {one: store.run(one) or {} for one in ([run] if run else store.runs())}
    known = [record for record in records.values() if stage in {**record.get("stages", {}), **record.get("failed", {})}]
    if len(known) == 1:  # a name that several runs have is the finished one's
        failed = known[0].get("failed", {}).get(stage)
        if failed and (found := read_unfinished(store, failed)):
            return found
    try:
        return store.find(name)
    except UserError:
        there = [f for f in begun(store) if f == name or f.rpartition("-")[2].startswith(name)]
        if len(there) == 1 and (found := read_unfinished(store, there[0])):
            return found
        raise


def failure(store: Store, folder: str) -> dict[str, Any] | None:
    """Why a stage failed when it was last tried: `error`, `at` and `log`; None if it did not fail."""
    scratch = store.workplace() / folder
    noted = _read(scratch / FAILED)
    return None if noted is None else {**noted, "log": str(scratch / LOG)}


def read_unfinished(store: Store, folder: str) -> Artifact | None:
    """What there is of an artifact that is not finished; None if it is finished, or nothing is known of it."""
    scratch = store.workplace() / folder
    spec = _read(scratch / SPEC)
    if spec is None or store.get(folder):
        return None
    made = ArtifactWriter(store, folder).contents()
    summary = store.read_json("artifacts", folder, SUMMARY) if SUMMARY in made.files else None
    inputs = {
        port: [{"name": label, "artifact": source} for label, source in given] for port, given in spec["inputs"].items()
    }
    return Artifact(store, folder, {
        "unfinished": failure(store, folder) or {"log": str(scratch / LOG)},
        "identity": spec["identity"],
        "stage": {"kind": spec["kind"], "config": spec["config"]},
        "inputs": inputs,
        "kind": "dataset" if spec["gives"] in DATASETS else "model",
        "schema": spec["gives"],
        "rows": made.rows,
        "rejected": dict(sorted(made.reasons.items())),
        "failed": made.failed,
        "files": made.files,
        "summary": summary or {},
        "timings": {"spent": spent} if (spent := _read(scratch / "spent.json")) else {},
    })  # fmt: skip


def begun(store: Store) -> list[str]:
    """Folders of stages that a run began here."""
    return sorted(spec.parent.name for spec in store.workplace().glob(f"*/{SPEC}"))


def spec_of(store: Store, folder: str) -> dict[str, Any] | None:
    """What a stage was asked to do that was begun here and is not finished."""
    return _read(store.workplace() / folder / SPEC)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # a spec that a kill cut short
        return None
