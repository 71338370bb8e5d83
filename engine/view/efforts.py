"""Who did a stage's work, and how fast: of a finished stage from its timings, of one under way from the note that its run keeps."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from engine.store.artifact import Artifact

FRESH_S = 30  # a note that is older is of a run that is gone, or says nothing


def efforts(artifact: Artifact) -> dict[str, Any]:
    """Of a stage whose tasks were done in several processes: `workers`, `nodes`, `partitions`, `rows_s`, and `stragglers`, in words, where a
    worker or a task took more than twice what the one in the middle did. Empty where one process did all of it.
    """
    timings = artifact.manifest["timings"]
    workers: dict[str, dict[str, float]] = timings.get("workers", {})
    if not workers:
        return {}
    wall = timings.get("wall_s") or 0
    return {
        "workers": len(workers),
        "nodes": len({name.rpartition(":")[0] for name in workers}),
        "partitions": len(artifact.parts()),
        "rows_s": round(artifact.rows / wall, 1) if wall and artifact.rows else None,
        "stragglers": [*_slow_workers(workers), *_slow_tasks(timings.get("tasks", {}))],
    }


def _slow_workers(workers: dict[str, dict[str, float]]) -> list[str]:
    median = statistics.median(one["wall_s"] for one in workers.values())
    return [
        f"{name} took {one['wall_s']:,.1f} s for {one['tasks']:,.0f} tasks (median of the workers {median:,.1f} s)"
        for name, one in workers.items()
        if one["wall_s"] > 2 * median
    ]


def _slow_tasks(tasks: dict[str, Any]) -> list[str]:
    return [
        f"task {one['task'] + 1} took {one['wall_s']:,.1f} s on {one['worker']} (median {tasks['median_s']:,.1f} s)"
        for one in tasks.get("stragglers", [])
    ]


def note_of(file: Path) -> dict[str, Any]:
    """What a run noted a moment ago of a stage under way (`engine.execution.progress_note`); empty if nothing."""
    try:
        noted = json.loads(file.read_text())
        return noted if time.time() - noted["at"] < FRESH_S else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def efforts_in_words(told: dict[str, Any]) -> list[str]:
    """A line for who did it, and one for each straggler."""
    if not told:
        return []
    rate = f", {told['rows_s']:,.0f} rows/s" if told["rows_s"] else ""
    on = f" on {counted(told['nodes'], 'node')}" if told["nodes"] > 1 else ""
    return [
        f"{counted(told['workers'], 'process')}{on}, {counted(told['partitions'], 'partition')}{rate}",
        *told["stragglers"],
    ]


def note_in_words(note: dict[str, Any]) -> str:
    """How far it is, how fast it goes, when it is done, who works on it."""
    told = list[str]()
    if "done" in note:
        of = f" of {note['total']:,}" if note["total"] else ""
        told.append(f"{note['done']:,}{of} {note['unit']}")
    if note.get("rate"):
        told.append(f"{note['rate']:,.1f}/s")
    if note.get("left_s") is not None:
        told.append(f"{note['left_s']:,.0f} s left")
    if note.get("parts"):
        told.append(counted(note["parts"], "partition"))
    if note.get("workers"):
        on = f" on {counted(note['nodes'], 'node')}" if note["nodes"] > 1 else ""
        told.append(counted(note["workers"], "process") + on)
    if note.get("dashboard"):
        told.append(f"Ray: {note['dashboard']}")
    return ", ".join(told) or note.get("text", "")


def counted(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
