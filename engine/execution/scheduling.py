"""Which stages of a plan come next: those whose inputs are there, the one with the longest way to the end first, as far as there is room.

Nothing here starts anything, and no byte depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.execution.machine import Machine
from engine.plan.plan import Planned, known
from engine.stage.stage import GIB, Footprint
from engine.store.artifact import Artifact
from engine.store.store import Store

SHARE = 0.9  # of the memory that there is can be planned with
AHEAD = GIB  # bytes of a process that has imported what a stage needs


@dataclass
class Schedule:
    """A plan under way.

    Attributes:
        jobs: stages at once, at most; None: as many as there is room for. With 1 the plan's order is kept.
        waiting: those that have not begun, in the plan's order.
        running: what those take that are under way, by name.
    """

    plan: list[Planned]
    machine: Machine
    jobs: int | None
    waiting: list[Planned] = field(init=False)
    running: dict[str, Footprint] = field(default_factory=lambda: {})
    _ranks: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = list(self.plan)
        self._ranks = ranks(self.plan)

    def ready(self, done: Mapping[str, Artifact]) -> list[Planned]:
        """Those whose inputs are there, the most urgent first. Of two that make the same artifact one comes after the other."""
        busy = {stage.folder for stage in self.plan if stage.name in self.running}
        found = [s for s in self.waiting if s.folder not in busy and all(name in done for name in needs(s))]
        return found if self.jobs == 1 else sorted(found, key=lambda stage: -self._ranks[stage.name])

    def choose(self, ready: Iterable[tuple[Planned, Footprint]]) -> tuple[Planned, Footprint] | None:
        """The first for which there is room, of those that are ready; none where a more urgent one waits for the same."""
        if self.jobs is not None and len(self.running) >= self.jobs:
            return None
        scarce = set[str]()
        for stage, footprint in ready:
            lacks = lacking(footprint, list(self.running.values()), self.machine)
            if not lacks and not scarce & wants(footprint):
                return stage, footprint
            scarce |= lacks
        return None

    def begin(self, stage: Planned, footprint: Footprint) -> None:
        self.waiting.remove(stage)
        self.running[stage.name] = footprint

    def next_up(self, done: Mapping[str, Artifact], ahead: int) -> list[Planned]:
        """Those that are to be made next, the most urgent first: their inputs are there, under way, or next up themselves. Their
        processes can be started ahead, as far as there is memory for them.

        Args:
            ahead: how many there may be.
        """
        if self.jobs == 1:
            return []
        memory = sum(f.memory or 0 for f in self.running.values())
        room = min(ahead, int((SHARE * self.machine.memory - memory) // AHEAD))
        found, near = list[Planned](), {*done, *self.running}
        for stage in sorted(
            self.waiting, key=lambda stage: -self._ranks[stage.name]
        ):  # whatever it takes comes before it
            if len(found) < room and not stage.cached and needs(stage) <= near:
                found.append(stage)
                near.add(stage.name)
        return found


def needs(stage: Planned) -> set[str]:
    """Names of the stages that it takes from."""
    return {source.name for given in stage.inputs.values() for _, source in given if isinstance(source, Planned)}


def ranks(plan: list[Planned]) -> dict[str, int]:
    """How many stages come one after the other after each stage, on the longest way to an end."""
    found = {stage.name: 0 for stage in plan}
    for stage in reversed(plan):
        for name in needs(stage):
            found[name] = max(found[name], found[stage.name] + 1)
    return found


def wants(one: Footprint) -> set[str]:
    return {"memory", *(["cores"] if one.cores else []), *(["gpu"] if one.gpu else [])}


def lacking(one: Footprint, running: list[Footprint], machine: Machine) -> set[str]:
    """What there is too little of to put a stage beside those that run; empty where nothing runs, since it has to run some time."""
    if not running:
        return set()
    everything = [one, *running]
    memory = [footprint.memory for footprint in everything]
    known = sum(bytes_ for bytes_ in memory if bytes_ is not None)
    lacks = {
        "memory": None in memory or known > SHARE * machine.memory,
        "cores": bool(one.cores) and sum(min(f.cores, machine.cores) for f in everything) > machine.cores,
        "gpu": one.gpu and any(f.gpu for f in running),
    }
    return {name for name, short in lacks.items() if short}


def footprint_of(stage: Planned, done: Mapping[str, Artifact], store: Store, machine: Machine) -> Footprint:
    """What a stage whose inputs are there takes."""
    given: dict[str, list[dict[str, Any]]] = {
        port: [known(store, source, done.get(source.name)) for _, source in sources]
        for port, sources in stage.inputs.items()
    }
    return stage.step.config.footprint(given, machine.device)
