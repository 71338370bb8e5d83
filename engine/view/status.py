"""Runs and what is under way, in words: what `status` prints."""

from __future__ import annotations

from typing import Any

from engine.store.store import Store
from engine.view.efforts import efforts, efforts_in_words, note_in_words, note_of
from engine.view.spending import Spending, spending
from engine.view.unfinished import PROGRESS, begun, failure, spec_of


def status_of(store: Store) -> list[dict[str, Any]]:
    """One entry a stage of every run: done, failed (with `error` and `log`), damaged (with `error` and `heal`), under way (was begun, and may
    be gone on with) or gone; what was spent on it; `work`, by whom it was done, or how far it is right now. A run whose record is
    damaged has one entry, without a stage."""
    rows: list[dict[str, Any]] = []
    for run in store.runs():
        record = store.run(run) or {"stages": {}}
        if fault := store.damage.get(f"runs/{run}.json"):
            heal = f"`flywheel repair {run}`, or run its recipe again: what is in the store is cached."
            rows.append(_entry(run, "", "", f"runs/{run}.json", "damaged", {"error": fault, "heal": heal}))
        failed = {name: folder for name, folder in record.get("failed", {}).items() if failure(store, folder)}
        for name, entry in record["stages"].items():
            if name not in failed:
                rows.append(_row(store, run, name, entry["kind"], entry["artifact"]))
        rows += [_row(store, run, name, folder.rpartition("-")[0], folder) for name, folder in failed.items()]
    known = {row["artifact"] for row in rows}
    for name in dict.fromkeys([*store.folders(), *begun(store)]):
        if name not in known:
            spec = spec_of(store, name) or {}
            rows.append(_row(store, spec.get("run", ""), spec.get("stage", ""), name.rpartition("-")[0], name))
    return rows


def work_in_words(row: dict[str, Any]) -> list[str]:
    """Who did a stage, or how far it is: lines below its entry."""
    if row["state"] == "done":
        return efforts_in_words(row["work"])
    return list(filter(None, [note_in_words(row["work"])]))


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
    fault = artifact.incomplete() if artifact else store.damage.get(folder)
    if fault:
        told = fault if folder in fault else f"{folder}: {fault}."
        damaged = {"error": told, "heal": f"`flywheel repair {folder}` makes it anew."}
        return _entry(run, stage, kind, folder, "damaged", damaged)
    failed = None if artifact else failure(store, folder)
    under_way = "under way" if store.begun(folder) or spec_of(store, folder) else "gone"
    entry = _entry(run, stage, kind, folder, "done" if artifact else "failed" if failed else under_way, failed or {})
    if artifact:
        return {**entry, "rows": artifact.rows, "spent": spending([artifact]), "work": efforts(artifact)}
    note = {} if failed else note_of(store.workplace() / folder / PROGRESS)
    return {**entry, "rows": note.get("rows", 0), "work": note}


def _entry(run: str, stage: str, kind: str, folder: str, state: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": run, "stage": stage, "kind": kind, "artifact": folder, "state": state, "rows": 0, "spent": {}, "work": {}, **told,
    }  # fmt: skip
