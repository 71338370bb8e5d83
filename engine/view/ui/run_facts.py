"""What a run is and how far it came, for its page: stages with their states, times, costs; curves that are still growing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from engine.stage.drawing import Curves
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.lease import is_held
from engine.store.store import Store
from engine.view.efforts import note_in_words, note_of
from engine.view.report.flow import Stop, stops_of
from engine.view.spending import Spending, by_answerer, spending
from engine.view.unfinished import PROGRESS, begun, failure, spec_of


@dataclass(frozen=True)
class StageState:
    """One stage of a run as it is now.

    Attributes:
        state: done, under way, failed, damaged, stopped, waiting (planned, not begun) or gone.
        share: of its work, from 0 to 1, where it is known.
        note: how far it is, or why it is not done.
    """

    stop: Stop
    state: str
    note: str = ""
    share: float | None = None
    left_s: float | None = None

    @property
    def seconds(self) -> float:
        return self.stop.artifact.manifest["timings"].get("wall_s", 0.0) if self.stop.artifact else 0.0


@dataclass(frozen=True)
class RunState:
    """A run: its stages, and sums over them.

    Attributes:
        began: seconds since 1970 of the stage that began first; None where none did.
        spent: by who answered.
    """

    name: str
    stages: list[StageState]
    began: float | None = None
    seconds: float = 0.0
    spent: dict[str, Spending] = field(default_factory=lambda: {})
    total: Spending = field(default_factory=lambda: {})

    @property
    def done(self) -> int:
        return sum(stage.state == "done" for stage in self.stages)

    @property
    def state(self) -> str:
        states = {stage.state for stage in self.stages}
        return next(
            (s for s in ("under way", "failed", "damaged", "gone", "stopped", "waiting") if s in states), "done"
        )

    @property
    def left_s(self) -> float | None:
        """Until the stages under way are done, the longest of them."""
        return max((stage.left_s for stage in self.stages if stage.left_s is not None), default=None)


def run_state(store: Store, run: str) -> RunState:
    """How a run is.

    Raises:
        UserError: there is no such run.
    """
    stops = stops_of(store, run, ahead=True)
    record = store.run(run) or {}
    working = {
        spec.get("stage", ""): folder
        for folder in begun(store)
        if (spec := spec_of(store, folder) or {}).get("run") == run
    }
    stages = [_state(store, stop, record.get("failed", {}).get(stop.name), working.get(stop.name)) for stop in stops]
    known = {stop.name for stop in stops}
    for name, folder in {**working, **record.get("failed", {})}.items():
        if name and name not in known:
            kind = folder.rpartition("-")[0]
            stages.append(
                _state(
                    store,
                    Stop(name, kind, [], None, Stage, folder),
                    record.get("failed", {}).get(name),
                    working.get(name),
                )
            )
    made = {s.stop.artifact.id: s.stop.artifact for s in stages if s.stop.artifact}.values()
    starts = [a.manifest["timings"]["started"] for a in made if "started" in a.manifest["timings"]]
    return RunState(
        run, stages, min(starts, default=None), sum(a.manifest["timings"].get("wall_s", 0.0) for a in made), by_model(store, made), spending(made)
    )  # fmt: skip


def _state(store: Store, stop: Stop, failed: str | None, working: str | None) -> StageState:
    if failed and (told := failure(store, failed)):
        return StageState(stop, "failed", told["error"])
    if stop.artifact and (working is None or working == stop.folder):
        fault = stop.artifact.incomplete()
        return StageState(stop, "damaged", fault) if fault else StageState(stop, "done")
    if stop.folder in store.damage:
        return StageState(stop, "damaged", store.damage[stop.folder])
    folder = working or stop.folder
    if working is None and not store.begun(folder):
        return StageState(stop, "waiting")
    note = note_of(store.workplace() / folder / PROGRESS)
    share = note["done"] / note["total"] if note.get("total") else None
    state = "under way" if is_held(store, folder) else "stopped"
    return StageState(stop, state, note_in_words(note), share, note.get("left_s"))


def by_model(store: Store, artifacts: Iterable[Artifact]) -> dict[str, Spending]:
    """Who answered, by the name that people know, with what it took in all of these stages."""
    total: dict[str, dict[str, float]] = {}
    for artifact in artifacts:
        for who, spent in by_answerer(artifact).items():
            model = store.get(who) if "-" in who else None
            mine = total.setdefault(store.title(model) if model else who, {})
            for name in ("tokens_in", "tokens_out", "cost"):
                mine[name] = mine.get(name, 0) + spent.get(name, 0)
    return dict(sorted(total.items(), key=lambda item: -item[1].get("cost", 0)))


def metrics_of(store: Store, artifact: Artifact | None, folder: str) -> pl.DataFrame | None:
    """The curves of a stage, finished or under way; None where it reported none."""
    if artifact:
        return artifact.metrics()
    file = store.workplace() / folder / "metrics.jsonl"
    if not file.exists():
        return None
    steps: dict[int, dict[str, float]] = {}
    for line in file.read_text(errors="replace").splitlines():
        try:
            point = {name: float(value) for name, value in json.loads(line).items() if isinstance(value, int | float)}
            steps.setdefault(int(point.pop("step")), {}).update(point)
        except (ValueError, KeyError, TypeError, AttributeError):  # a line that is being written
            continue
    names = sorted({name for point in steps.values() for name in point})
    rows = [{"step": step, **{name: steps[step].get(name) for name in names}} for step in sorted(steps)]
    return pl.DataFrame(rows, schema={"step": pl.Int64, **dict.fromkeys(names, pl.Float64)}) if rows else None


def curves_of(stage: type[Stage]) -> Curves:
    """What a stage wants drawn of its metrics; the first of them where it says nothing."""
    return next((drawing for drawing in stage.drawings if isinstance(drawing, Curves)), Curves(()))
