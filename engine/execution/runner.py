"""Carry out a plan: one worker process a stage, side by side where there is room, skipping what the store already holds.

Kill it at any moment: finished artifacts stay, committed partitions and checkpoints stay, and running again goes on.

A stage that fails lets those end that are under way, and nothing new begins. Where people have to rank first, all that does not
wait for them is made before that is told.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from engine.errors import FlywheelError, StageFailed, UserError, Waiting
from engine.execution import stops
from engine.execution.bytecode import bytecode
from engine.execution.machine import this_machine
from engine.execution.one_stage import Maker, View, saying, shortage_told, why_anew
from engine.execution.residents import Residents, residents
from engine.execution.scheduling import Schedule, footprint_of
from engine.execution.stage_process import Crew, StageProcess
from engine.plan.checks import check
from engine.plan.plan import Planned, make_plan, moves_in_words, names_that_move
from engine.plan.recipe import Recipe, called, load_recipe
from engine.stage.stage import Footprint
from engine.store.artifact import Artifact
from engine.store.known_digests import shared_digests
from engine.store.lease import Lease
from engine.store.run_records import PLANNED, set_aside, tagged
from engine.store.store import Store

PATIENCE_S = 2  # with a thread whose processes have ended; what it writes itself survives its end at any moment


def run(
    recipe: str | Path,
    *,
    store: str | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    wait: bool = False,
    no_wait: bool = False,
    retry_failed: bool = False,
    view: View | None = None,
    jobs: int | None = None,
    workers: int | None = None,
    executor: str | None = None,
    address: str | None = None,
    name: str | None = None,
) -> dict[str, Artifact]:
    """Run a recipe to its end and return stage name -> artifact. What the store already holds is not run again.

    Args:
        recipe: the YAML file.
        store: URL of the store; else the recipe's, else the default one.
        overrides: `STAGE.FIELD=VALUE` settings on top of the recipe.
        only: run these stages and what they need.
        wait: where people have to rank, wait for them instead of raising `Waiting`.
        no_wait: where another run makes a stage's artifact right now, raise `Busy` instead of waiting for that run.
        retry_failed: make those stages anew that asked a server and had rows that did not make it: answers that were good are
            kept, the others are asked for again. What was made of a stage follows where that gave other rows.
        jobs: stages at once, at most; as many as cores and memory allow if None. No byte depends on it.
        workers: processes that a stage's tasks are spread over; as many as there are cores if None. No byte depends on it.
        executor: "local" or "ray", where tasks are done; else the recipe's. address: of the Ray cluster.
        name: what the run is called instead of by its recipe's name. Where the name stood for something else, that stays as `NAME@1`, ...

    Raises:
        UserError: the recipe is wrong. StageFailed: a stage could not finish. Waiting: people have to rank first.
        Busy: as `no_wait` says.
    """
    loaded = called(load_recipe(recipe, overrides), name)
    where = Store(store or loaded.store)
    how = {"workers": workers, "executor": executor or loaded.executor, "address": address}
    return run_plan(
        loaded, where, only=only, wait=wait, no_wait=no_wait, retry_failed=retry_failed, view=view, jobs=jobs, how=how
    )


@shared_digests()
def run_plan(
    recipe: Recipe,
    where: Store,
    *,
    only: list[str] | None = None,
    wait: bool = False,
    no_wait: bool = False,
    retry_failed: bool = False,
    view: View | None = None,
    record: bool = True,
    jobs: int | None = None,
    how: dict[str, Any] | None = None,
) -> dict[str, Artifact]:
    """Plan a parsed recipe and carry it out in this store; `record` notes it as a run, `how` says where the work is done
    (`engine.execution.executors.choice`). As `run` else.
    """
    options = {"wait": wait, **(how or {"executor": recipe.executor})}
    notes: list[str] = []
    machine = this_machine()
    if record and (holder := tagged(where, recipe.name)) and recipe.name not in where.runs():
        raise UserError(
            f"`{recipe.name}` is a tag of {holder}, which stays where it is. Call the run otherwise: `--as NAME`."
        )
    plan = make_plan(recipe, where, only, machine.device, say=notes.append)
    check(recipe, plan, where, offline=True)  # an answer may be in the cache of a server that is gone
    view = Heard(view) if view else None
    with contextlib.ExitStack() as kept:
        if view:
            kept.callback(view.stop)
            view.start(plan)
        for note in dict.fromkeys(notes):
            saying(view, plan[0])(note)
        if record and (moved := names_that_move(where, recipe.name, plan)):
            told = moves_in_words(where, recipe.name, moved, ("now means", "now mean"))
            with shortage_told(moved[0]):
                earlier = set_aside(where, recipe.name)
            saying(view, moved[0])(f"{told}; what there was stays as {earlier}")
        if record:
            with shortage_told(plan[0]):
                _note_plan(where, recipe.name, plan)
        # What a run keeps for all its stages is opened here; its variables are their processes'.
        environment = {**kept.enter_context(bytecode())}
        maker = Maker(
            where.url, recipe.name if record else "", str(recipe.base), options, Crew(environment), view, no_wait,
            retry_failed,
        )  # fmt: skip
        resident = kept.enter_context(residents(plan))
        return Run(recipe, where, Schedule(plan, machine, jobs), maker, resident).carry_out()


@dataclass
class Run:
    """A plan that is carried out.

    Attributes:
        done: by stage.
        failures, waiting: what stages raised, by stage.
    """

    recipe: Recipe
    where: Store
    schedule: Schedule
    maker: Maker
    residents: Residents
    done: dict[str, Artifact] = field(default_factory=lambda: {})
    failures: dict[str, BaseException] = field(default_factory=lambda: {})
    waiting: dict[str, BaseException] = field(default_factory=lambda: {})
    _ended: SimpleQueue[tuple[Planned, Artifact | BaseException]] = field(default_factory=lambda: SimpleQueue())
    _ahead: dict[str, StageProcess] = field(default_factory=lambda: {})
    _threads: list[threading.Thread] = field(default_factory=lambda: [])
    _footprints: dict[str, Footprint] = field(default_factory=lambda: {})

    def carry_out(self) -> dict[str, Artifact]:
        """
        Returns:
            what all stages made, in the plan's order.
        """
        schedule = self.schedule
        try:
            while True:
                if not self.failures:
                    self._begin_those_that_fit()
                if not schedule.running:
                    break
                stage, result = self._ended.get()
                del schedule.running[stage.name]
                if isinstance(result, Artifact):
                    self._keep(stage, replace(result, store=self.where))
                else:
                    (self.waiting if isinstance(result, Waiting) else self.failures)[stage.name] = result
        except BaseException:  # the run is stopped
            self.maker.crew.stop()
            for thread in self._threads:
                thread.join(PATIENCE_S)
            raise
        finally:
            for process in self._ahead.values():
                self.maker.crew.dismiss(process)
        if errors := self.failures or self.waiting:
            raise _as_one([errors[stage.name] for stage in schedule.plan if stage.name in errors])
        return {stage.name: self.done[stage.name] for stage in schedule.plan}

    def _begin_those_that_fit(self) -> None:
        schedule, maker = self.schedule, self.maker
        while True:
            ready = schedule.ready(self.done)
            if cached := next(((s, a) for s in ready if (a := self._cached(s))), None):
                schedule.waiting.remove(cached[0])
                self.residents.over(cached[0])
                self._keep(*cached)
                continue
            free = [stage for stage in ready if not self.residents.lent(stage, schedule.running)]
            chosen = schedule.choose((stage, self._footprint(stage)) for stage in free)
            if chosen is None:
                break
            stage, footprint = chosen
            schedule.begin(stage, footprint)
            made_of = dict(self.done)
            process = self._ahead.pop(stage.name, None)
            thread = threading.Thread(
                target=self._make, args=(stage, made_of, process), name=stage.name, daemon=True
            )  # fmt: skip
            self._threads.append(thread)
            thread.start()
        for stage in schedule.next_up(self.done, schedule.machine.cores):
            if stage.name not in self._ahead and len(self._ahead) < schedule.machine.cores:
                self._ahead[stage.name] = maker.start_ahead(stage)

    def _make(self, stage: Planned, made_of: dict[str, Artifact], process: StageProcess | None) -> None:
        try:
            with self.residents.during(stage):
                made = self.maker.have(stage, made_of, process)
            self._ended.put((stage, made))
        except BaseException as error:
            self._ended.put((stage, error))

    def _cached(self, stage: Planned) -> Artifact | None:
        with shortage_told(stage):
            found = self.where.get(stage.folder)
            if found is None or why_anew(self.where, stage, found, self.done, self.maker.retry_failed):
                return None
        if self.maker.view:
            self.maker.view.event(stage, {"event": "cached", "rows": found.rows})
        return found

    def _footprint(self, stage: Planned) -> Footprint:
        if stage.name not in self._footprints:
            self._footprints[stage.name] = footprint_of(stage, self.done, self.where, self.schedule.machine)
        return self._footprints[stage.name]

    def _keep(self, stage: Planned, made: Artifact) -> None:
        self.done[stage.name] = made
        if self.maker.run:
            with shortage_told(stage):
                _record(self.where, self.maker.run, self.recipe, stage)


def _as_one(errors: list[BaseException]) -> BaseException:
    """What several stages raised as one error; a fault of ours as it is."""
    odd = [error for error in errors if not isinstance(error, FlywheelError)]
    if odd or len(errors) == 1:
        return (odd or errors)[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else StageFailed
    return kind("\n".join(str(error) for error in errors))


class Heard:
    """A view that may lose whoever looks at it (`| head`, a closed terminal): the run goes on unseen. It is told one thing at a time."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._telling = threading.RLock()

    def start(self, plan: list[Planned]) -> None:
        self._tell(lambda: self._view.start(plan))

    def event(self, stage: Planned, event: dict[str, Any]) -> None:
        self._tell(lambda: self._view.event(stage, event))

    def stop(self) -> None:
        self._tell(self._view.stop)

    def _tell(self, tell: Callable[[], None]) -> None:
        try:
            with self._telling:
                tell()
        except BrokenPipeError:
            stops.unheard()
        except SystemExit as error:  # rich's answer to a broken pipe
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            stops.unheard()
        except OSError as error:
            if error.errno != errno.EIO:  # of a terminal that is gone
                raise
            stops.unheard()


def _note_plan(store: Store, run: str, plan: list[Planned]) -> None:
    """Note what is still to come, for those who look on. A stage that is done is no longer among it."""
    ahead = {stage.name: {**_entry(stage), "identity": {}} for stage in plan if not stage.cached}

    def change(record: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in record.items() if name != PLANNED}
        return {**kept, **({PLANNED: ahead} if ahead else {})}

    store.update_run(run, change)


def _entry(stage: Planned) -> dict[str, Any]:
    return {
        "artifact": stage.folder,
        "kind": stage.step.kind,
        "identity": stage.identity,
        "inputs": {port: [[label, s.folder] for label, s in given] for port, given in stage.inputs.items()},
    }


def _record(store: Store, run: str, recipe: Recipe, stage: Planned) -> None:
    """Note what the stage of this name was, for names and for `plan --why`; what is noted already is not written again."""
    entry = _entry(stage)

    def change(record: dict[str, Any]) -> dict[str, Any]:
        failed = {name: folder for name, folder in record.get("failed", {}).items() if name != stage.name}
        ahead = {name: entry for name, entry in record.get(PLANNED, {}).items() if name != stage.name}
        stages = {**record["stages"], stage.name: entry}
        ordered = {name: stages[name] for name in [*recipe.steps, *stages] if name in stages}
        kept = {name: value for name, value in record.items() if name not in ("stages", "failed", PLANNED)}
        left = {"failed": failed, PLANNED: ahead}
        told = {
            "recipe": Path(recipe.file).name,
            **kept,
            "stages": ordered,
            **{name: value for name, value in left.items() if value},
        }
        return {**told, "about": recipe.about} if recipe.about and told != record else told

    store.update_run(run, change)


def make(where: Store, stage: Planned, held: Lease, base: Path, view: View | None = None) -> Artifact:
    """Carry out one stage, that no recipe names, in a process of its own.

    Raises:
        StageFailed: it could not finish.
    """
    if view:
        view.start([stage])
    try:
        return Maker(where.url, "", str(base), {"wait": False}, Crew(), view).make(stage, held, where)
    finally:
        if view:
            view.stop()
