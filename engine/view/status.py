"""Runs and what is under way, in words: what `status` prints."""

from __future__ import annotations

from typing import Any

from engine.store.store import Store


def status_of(store: Store) -> list[dict[str, Any]]:
    """One entry a stage of every run: done, under way (has committed partitions or checkpoints) or not."""
    rows: list[dict[str, Any]] = []
    for run in store.runs():
        for name, entry in (store.run(run) or {"stages": {}})["stages"].items():
            artifact = store.get(entry["artifact"])
            begun = store.begun(entry["artifact"])
            rows.append({
                "run": run, "stage": name, "kind": entry["kind"], "artifact": entry["artifact"],
                "state": "done" if artifact else "under way" if begun else "gone",
                "rows": artifact.rows if artifact else 0,
            })  # fmt: skip
    known = {row["artifact"] for row in rows}
    for name in store.folders():
        if name not in known:
            artifact = store.get(name)
            rows.append({
                "run": "", "stage": "", "kind": name.rpartition("-")[0], "artifact": name,
                "state": "done" if artifact else "under way", "rows": artifact.rows if artifact else 0,
            })  # fmt: skip
    return rows
