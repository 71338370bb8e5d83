"""Runs and what is under way, in words: what `status` prints."""

from __future__ import annotations

from typing import Any

from engine.store.store import Store
from engine.view.spending import Spending, spending
from engine.view.unfinished import failure


def status_of(store: Store) -> list[dict[str, Any]]:
    """One entry a stage of every run: done, failed (with `error` and `log`), under way (has committed partitions or checkpoints)
    or gone; and what was spent on it."""
    rows: list[dict[str, Any]] = []
    for run in store.runs():
        record = store.run(run) or {"stages": {}}
        failed = {name: folder for name, folder in record.get("failed", {}).items() if failure(store, folder)}
        for name, entry in record["stages"].items():
            if name not in failed:
                rows.append(_row(store, run, name, entry["kind"], entry["artifact"]))
        rows += [_row(store, run, name, folder.rpartition("-")[0], folder) for name, folder in failed.items()]
    known = {row["artifact"] for row in rows}
    rows += [_row(store, "", "", name.rpartition("-")[0], name) for name in store.folders() if name not in known]
    return rows


def spent_by_run(store: Store) -> dict[str, Spending]:
    """What the stages of each run took, of those that asked anybody."""
    told: dict[str, Spending] = {}
    for run in store.runs():
        stages = (store.run(run) or {"stages": {}})["stages"].values()
        if total := spending(found for entry in stages if (found := store.get(entry["artifact"]))):
            told[run] = total
    return told


def _row(store: Store, run: str, stage: str, kind: str, folder: str) -> dict[str, Any]:
    artifact = store.get(folder)
    failed = None if artifact else failure(store, folder)
    begun = "under way" if store.begun(folder) else "gone"
    return {
        "run": run, "stage": stage, "kind": kind, "artifact": folder,
        "state": "done" if artifact else "failed" if failed else begun,
        "rows": artifact.rows if artifact else 0, "spent": spending([artifact]) if artifact else {}, **(failed or {}),
    }  # fmt: skip
