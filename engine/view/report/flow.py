"""A run as the report sees it: its stages, drawn as boxes and lines."""

from __future__ import annotations

import html
from dataclasses import dataclass

from engine.errors import UserError, nearest
from engine.stage.stage import Stage, load
from engine.store.artifact import Artifact
from engine.store.store import Store

MUTED = "#8792a2"
NAME = 13  # characters of a stage's name that fit on one line of its box
# Colours of phases, in the order in which a run comes to them.
PALETTE = ("#2a9d8f", "#7b5cd6", "#2f6fde", "#e08a1e", "#c2477f", "#6b7d2a")


@dataclass(frozen=True)
class Stop:
    """One stage of the run as the report sees it."""

    name: str
    kind: str
    inputs: list[str]
    artifact: Artifact | None
    stage: type[Stage]


def stops_of(store: Store, run: str) -> list[Stop]:
    """The stages of a run's record, in order.

    Raises:
        UserError: no run of this name.
    """
    record = store.run(run)
    if record is None:
        raise UserError(
            f"no run `{run}` in the store {store.url}.{nearest(run, store.runs())} `flywheel status` lists them."
        )
    names = {entry["artifact"]: name for name, entry in record["stages"].items()}
    return [
        Stop(
            name,
            entry["kind"],
            list(dict.fromkeys(names.get(f, f) for given in entry["inputs"].values() for _, f in given)),
            store.get(entry["artifact"]),
            _class(entry["kind"]),
        )
        for name, entry in record["stages"].items()
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


def flow_svg(stops: list[Stop]) -> str:
    """The stages as boxes, each to the right of what it takes from, with the rows that came out of each."""
    phases = colours(stops)
    depth: dict[str, int] = {}
    for stop in stops:
        depth[stop.name] = 1 + max((depth.get(name, -1) for name in stop.inputs), default=-1)
    columns: dict[int, list[Stop]] = {}
    for stop in stops:
        columns.setdefault(depth[stop.name], []).append(stop)
    wide, gap_x, gap_y = 124, 16, 14
    high = 46 if all(len(stop.name) <= NAME for stop in stops) else 54
    tallest = max((len(c) for c in columns.values()), default=0)
    place: dict[str, tuple[float, float]] = {}
    for x, column in sorted(columns.items()):
        # Near the mean height of its inputs, so that lines stay short.
        wish = {s.name: _mean([place[n][1] for n in s.inputs if n in place]) for s in column}
        column.sort(key=lambda s: wish[s.name])
        top = (tallest - len(column)) * (high + gap_y) / 2
        for y, stop in enumerate(column):
            place[stop.name] = (x * (wide + gap_x), top + y * (high + gap_y))
    width = max((x for x, _ in place.values()), default=0) + wide + 4
    height = tallest * (high + gap_y) + 4
    parts = [f'<svg viewBox="-2 -2 {width:.0f} {height:.0f}" role="img" aria-label="flow of the run" class="flow">']
    for stop in stops:
        x2, y2 = place[stop.name][0], place[stop.name][1] + high / 2
        for name in stop.inputs:
            if name in place:
                x1, y1 = place[name][0] + wide, place[name][1] + high / 2
                bend = max(18.0, (x2 - x1) / 2)
                parts.append(f'<path d="M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"/>')
    for stop in stops:
        x, y = place[stop.name]
        colour = phases.get(stop.stage.phase, MUTED)
        rows = (
            f"{stop.artifact.rows:,} rows"
            if stop.artifact and stop.artifact.rows
            else stop.artifact.kind
            if stop.artifact
            else "–"
        )
        lost = sum(stop.artifact.manifest["rejected"].values()) if stop.artifact else 0
        note = rows + (f", {lost:,} out" if lost else "")
        parts.append(
            f'<g transform="translate({x},{y})"><rect width="{wide}" height="{high}" rx="7" fill="{colour}"/>'
            f'<text y="{19 if len(stop.name) <= NAME else 15}" class="name">{_name(stop.name)}</text>'
            f'<text x="8" y="{high - 10}" class="rows">{html.escape(note)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def _name(name: str) -> str:
    """A stage's name on one line or, where it is too long for its box, on two."""
    words = name.split("_")
    cut = next((n for n in range(len(words) - 1, 0, -1) if len("_".join(words[:n])) < NAME), 0)
    lines = [name] if len(name) <= NAME or not cut else ["_".join(words[:cut]) + "_", "_".join(words[cut:])]
    return "".join(f'<tspan x="8" dy="{13 * bool(i)}">{html.escape(line)}</tspan>' for i, line in enumerate(lines))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
