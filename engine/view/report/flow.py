"""A run as its report and its page see it: its stages, drawn as boxes and lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import UserError, nearest
from engine.stage.stage import Stage, load
from engine.store.artifact import Artifact
from engine.store.run_records import PLANNED
from engine.store.store import Store
from engine.view.graph_picture import MUTED, Box, graph_svg

# Colours of phases, in the order in which a run comes to them: white is read on each of them.
PALETTE = ("#1f7a6e", "#6d4fc7", "#2a63c8", "#a65f0e", "#b03a6b", "#5c6b22")


@dataclass(frozen=True)
class Stop:
    """One stage of the run as the report sees it. `folder` is its artifact's, finished or not."""

    name: str
    kind: str
    inputs: list[str]
    artifact: Artifact | None
    stage: type[Stage]
    folder: str = ""


def stops_of(store: Store, run: str, ahead: bool = False) -> list[Stop]:
    """The stages of a run's record, in order, and after them those that are still to come.

    Args:
        ahead: where a stage is to be made anew, as what will be made; otherwise as what it was.

    Raises:
        UserError: no run of this name.
    """
    record = store.run(run)
    if record is None:
        raise UserError(
            f"no run `{run}` in the store {store.url}.{nearest(run, store.runs())} `flywheel status` lists them."
        )
    planned = record.get(PLANNED, {})
    entries = {**record["stages"], **{n: e for n, e in planned.items() if ahead or n not in record["stages"]}}
    names = {entry["artifact"]: name for name, entry in entries.items()}
    return [
        Stop(
            name,
            entry["kind"],
            list(dict.fromkeys(names.get(f, f) for given in entry["inputs"].values() for _, f in given)),
            store.get(entry["artifact"]),
            _class(entry["kind"]),
            entry["artifact"],
        )
        for name, entry in entries.items()
    ]


def _class(kind: str) -> type[Stage]:
    """What declared this kind; nothing is declared where it is no longer installed."""
    try:
        return load(kind)
    except UserError:
        return Stage


def colours(stops: list[Stop]) -> dict[str, str]:
    """Phase -> colour."""
    phases = dict.fromkeys(stop.stage.phase for stop in stops if stop.stage.phase)
    return {phase: PALETTE[i % len(PALETTE)] for i, phase in enumerate(phases)}


def flow_svg(
    stops: list[Stop], link: Callable[[Stop], str] = lambda stop: "", marks: dict[str, str] | None = None
) -> str:
    """The stages as boxes, each below what it takes from, with the rows that came out of each.

    Args:
        link: where a box leads.
        marks: stage -> how it is (`failed`, `under way`, ...), where that is not simply done.
    """
    phases, marks = colours(stops), marks or {}
    boxes = [
        Box(
            stop.name,
            stop.name,
            (marks.get(stop.name) or _note(stop),),
            tuple(stop.inputs),
            phases.get(stop.stage.phase, MUTED),
            link(stop),
            marks.get(stop.name, "").split(",")[0].replace(" ", "-"),
        )
        for stop in stops
    ]
    return graph_svg(boxes, "flow of the run")


def _note(stop: Stop) -> str:
    if stop.artifact is None:
        return "–"
    lost = sum(stop.artifact.manifest["rejected"].values())
    rows = f"{stop.artifact.rows:,} rows" if stop.artifact.rows else stop.artifact.kind
    return rows + (f", {lost:,} out" if lost else "")
