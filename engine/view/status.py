"""Runs and what is under way, in words: what `status` prints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from engine.store import run_records
from engine.store.artifact import Artifact
from engine.store.lease import is_held
from engine.store.store import Store
from engine.view.efforts import counted, efforts, efforts_in_words, note_in_words, note_of
from engine.view.spending import Spending, in_words, spending
from engine.view.unfinished import PROGRESS, begun, failure, spec_of

MARKS = {"done": "✓", "failed": "✗", "damaged": "✗", "under way": "▸", "gone": "–"}


def status_of(store: Store) -> list[dict[str, Any]]:
    """One entry a stage of every run: done, failed (with `error` and `log`), damaged (with `error` and `heal`), under way (was begun, and may
    be gone on with; `now` if somebody is at it) or gone; when it `started` and `finished` (seconds since 1970); what was spent on it;
    `work`, by whom it was done, or how far it is right now. A run whose record is damaged has one entry, without a stage."""
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
    for state in filter(run_records.is_state, run_records.names(store)):
        known.update(run_records.made(run_records.read(store, state) or {}).values())
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
        started, finished = times_of(artifact)
        times = {"started": started, "finished": finished}
        return {**entry, **times, "rows": artifact.rows, "spent": spending([artifact]), "work": efforts(artifact)}
    note = {} if failed else note_of(store.workplace() / folder / PROGRESS)
    now = entry["state"] == "under way" and is_held(store, folder)
    return {**entry, "now": now, "started": note.get("started"), "rows": note.get("rows", 0), "work": note}


def times_of(artifact: Artifact) -> tuple[float | None, float | None]:
    """When work on it began and ended, in seconds since 1970; None where nobody noted it."""
    timings = artifact.manifest["timings"]
    started, took = timings.get("started"), timings.get("wall_s")
    if not isinstance(started, int | float) or not isinstance(took, int | float):
        return None, None
    return started, started + took


def date(moment: float | None) -> str:
    """A moment in local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else ""


def status_lines(store: Store, rows: list[dict[str, Any]]) -> Iterator[str]:
    """All that `status` prints: each run under a line of its own, and what is under way first in words, then in numbers."""
    spent = spent_by_run(store)
    widths = [max([len(str(row[name])) for row in rows] + [4]) for name in ("stage", "kind")]
    # What is under way belongs to a run whose record has nothing of it yet.
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        yield _head(store, run, mine, spent.get(run))
        for row in mine:
            state = row["state"] if row["state"] != "under way" or row.get("now") else "stopped"
            told = f"{MARKS[row['state']] if state != 'stopped' else '·'} {row['stage']:<{widths[0]}}  {row['kind']:<{widths[1]}}"
            when = date(row.get("finished") or row.get("at") or row.get("started"))
            rows_of = f"{row['rows']:,} rows" if row["rows"] else ""
            yield f"  {told}  {state:<9}  {rows_of:>16}  {when:<16}  {row['artifact']}"
            for line in work_in_words(row):
                yield f"      {line}"
            if "error" in row:
                name = f"{row['run']}/{row['stage']}" if row["stage"] else row["artifact"]
                look = row.get("heal") or f"Its log: {row['log']}. Its rows: flywheel show {name} --rejected"
                yield from (f"      {line}" for line in [*row["error"].splitlines(), look])


def _head(store: Store, run: str, rows: list[dict[str, Any]], spent: Spending | None) -> str:
    if not run:
        return "No run has these by name"
    record = run_records.read(store, run) or {}
    now = next((row["stage"] for row in rows if row.get("now")), None)
    done = sum(row["state"] == "done" for row in rows)
    told = [f"{now} is under way" if now else "", f"{done} of {len(rows)} stages done", _span(rows)]
    told += [in_words(spent)] if spent else []
    tags = record.get(run_records.TAGS, [])
    told += [f"tagged {', '.join(tags)}"] if tags else []
    earlier = len(run_records.states(store, run))
    told += [f"it stood for something else {counted(earlier, 'time')} before: flywheel runs {run}"] if earlier else []
    return f"{run}: {'; '.join(filter(None, told))}"


def _span(rows: Iterable[dict[str, Any]]) -> str:
    """The days of a run, from its first stage's begin to its last one's end."""
    ends = [row["finished"] for row in rows if row.get("finished")]
    begins = [row["started"] for row in rows if row.get("started")]
    if not begins:
        return ""
    first, last = date(min(begins)), date(max(ends)) if ends else ""
    return first if last in ("", first) else f"{first} to {last[11:] if last[:10] == first[:10] else last}"


def _entry(run: str, stage: str, kind: str, folder: str, state: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": run, "stage": stage, "kind": kind, "artifact": folder, "state": state, "rows": 0, "spent": {}, "work": {}, **told,
    }  # fmt: skip
