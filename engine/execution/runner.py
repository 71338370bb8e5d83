"""Carry out a plan: one worker process a stage, in order, skipping what the store already holds.

Kill it at any moment: finished artifacts stay, committed partitions and checkpoints stay, and running again goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from engine.errors import StageFailed, UserError, Waiting
from engine.execution import keeper, stops, threads
from engine.execution.again import note_failure, prepare
from engine.execution.residents import residents
from engine.plan.checks import check
from engine.plan.inputs import External, Say
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import Recipe, load_recipe
from engine.redaction import open_log, redact_file, redacted
from engine.shortage import killed, shortage
from engine.store.artifact import Artifact
from engine.store.known_digests import shared_digests
from engine.store.lease import HELD, Lease, Superseded, lease
from engine.store.store import Store
from engine.store.whole_file import whole_file
from engine.store.writer import ArtifactWriter
from engine.view.spending import spending
from engine.view.unfinished import LOG, SPEC


class View(Protocol):
    """Somebody who watches a run (see `engine.execution.progress`)."""

    def start(self, plan: list[Planned]) -> None: ...
    def event(self, stage: Planned, event: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


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
    workers: int | None = None,
    executor: str | None = None,
    address: str | None = None,
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
        workers: processes that a stage's tasks are spread over; as many as there are cores if None. No byte depends on it.
        executor: "local" or "ray", where tasks are done; else the recipe's. address: of the Ray cluster.

    Raises:
        UserError: the recipe is wrong. StageFailed: a stage could not finish. Waiting: people have to rank first.
        Busy: as `no_wait` says.
    """
    loaded = load_recipe(recipe, overrides)
    where = Store(store or loaded.store)
    how = {"workers": workers, "executor": executor or loaded.executor, "address": address}
    return run_plan(loaded, where, only=only, wait=wait, no_wait=no_wait, retry_failed=retry_failed, view=view, how=how)


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
    how: dict[str, Any] | None = None,
) -> dict[str, Artifact]:
    """Plan a parsed recipe and carry it out in this store; `record` notes it as a run, `how` says where the work is done
    (`engine.execution.executors.choice`). As `run` else.
    """
    options = {"wait": wait, **(how or {"executor": recipe.executor})}
    notes: list[str] = []
    plan = make_plan(recipe, where, only, say=notes.append)
    check(recipe, plan, where, offline=True)  # an answer may be in the cache of a server that is gone
    done: dict[str, Artifact] = {}
    view = Heard(view) if view else None
    if view:
        view.start(plan)
    for note in dict.fromkeys(notes):
        _saying(view, plan[0])(note)
    try:
        with residents(plan) as kept:
            for stage in plan:
                try:
                    with kept.during(stage):
                        found = _have(where, stage, done, recipe, options, no_wait, retry_failed, record, view)
                    done[stage.name] = found
                    if record:
                        _record(where, recipe.name, recipe.file, stage, list(recipe.steps))
                except (OSError, MemoryError) as error:
                    if words := shortage(error):
                        raise StageFailed(f"stage `{stage.name}` ({stage.step.kind}): {words}") from error
                    raise
    finally:
        if view:
            view.stop()
    return done


def _have(
    where: Store,
    stage: Planned,
    done: dict[str, Artifact],
    recipe: Recipe,
    options: dict[str, Any],
    no_wait: bool,
    retry_failed: bool,
    record: bool,
    view: View | None,
) -> Artifact:
    """A stage's artifact: the one in the store, or one that is made now, by us or by another run that has begun already."""
    say = _saying(view, stage)
    found = where.get(stage.folder)
    if found is None or _why_anew(where, stage, found, done, retry_failed):
        for given in stage.inputs.values():
            for _, source in given:
                if isinstance(source, External):
                    _adopt(where, source, no_wait, say)
        with lease(where, stage.folder, no_wait=no_wait, say=say) as held:
            before, found = found, where.get(stage.folder)
            remade = found is not None and (before is None or found.manifest != before.manifest)  # while this waited
            anew = _why_anew(where, stage, found, done, retry_failed and not remade)
            if found is None or anew:
                if anew:
                    say(anew)
                try:
                    prepare(where, stage, anew=anew is not None)
                    _work(where, stage, held, str(recipe.base), options, view)
                except BaseException as error:
                    with contextlib.suppress(OSError):  # the disk may be full
                        note_failure(where, recipe.name if record else "", stage, error)
                    raise
                found = where.get(stage.folder)
                if found is None:
                    raise StageFailed(f"stage `{stage.name}` ended without an artifact.")
                return found
    if view:
        view.event(stage, {"event": "cached", "rows": found.rows})
    return found


def _adopt(where: Store, source: External, no_wait: bool, say: Say) -> None:
    """Bring an input that no stage makes into the store, unless it is there, whole.

    Raises:
        Damaged: it is an artifact that can't be made anew from here.
    """
    found, lack = source.there(where)
    if found:
        return
    with lease(where, source.folder, no_wait=no_wait, say=say):
        found, lack = source.there(where)  # another may have brought it meanwhile
        if lack:
            say(f"{source.name} is read anew: {lack}")
            ArtifactWriter(where, source.folder).discard()
        source.adopt(where, say)


class Heard:
    """A view that may lose whoever looks at it (`| head`, a closed terminal): the run goes on unseen."""

    def __init__(self, view: View) -> None:
        self._view = view

    def start(self, plan: list[Planned]) -> None:
        self._tell(lambda: self._view.start(plan))

    def event(self, stage: Planned, event: dict[str, Any]) -> None:
        self._tell(lambda: self._view.event(stage, event))

    def stop(self) -> None:
        self._tell(self._view.stop)

    def _tell(self, tell: Callable[[], None]) -> None:
        try:
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


def _saying(view: View | None, stage: Planned) -> Say:
    """Says a line beside a stage, where somebody watches."""

    def say(text: str) -> None:
        if view:
            view.event(stage, {"event": "say", "text": text})

    return say


def _why_anew(
    store: Store, stage: Planned, found: Artifact | None, done: dict[str, Artifact], retry_failed: bool
) -> str | None:
    """Why what is there of a finished stage is made anew under the same key; None if it stays, or nothing is there."""
    if found is None:
        damage = store.damage.get(stage.folder)
        return f"made anew: {damage}" if damage else None
    if not stage.cached and (lack := found.incomplete()):  # the plan has looked at those that are
        return f"made anew: {stage.folder} is incomplete: {lack}"
    made_of = {entry["artifact"]: entry["digest"] for given in found.manifest["inputs"].values() for entry in given}
    for given in stage.inputs.values():
        for _, source in given:
            # Keys follow keys, so that rows that were asked for again change no key after them.
            if isinstance(source, Planned) and made_of.get(source.folder) != done[source.name].digest:
                return f"made anew: `{source.name}` has other rows than those it was made of"
    lost = sum(found.manifest["rejected"].values())
    if retry_failed and lost and stage.step.config.asks():
        rows = "1 row did not make it and is" if lost == 1 else f"{lost:,} rows did not make it and are"
        return f"{rows} asked for again; answers that were good are kept"
    return None


def _record(store: Store, run: str, file: str, stage: Planned, order: list[str]) -> None:
    """Note what the stage of this name was, for names and for `plan --why`."""
    entry = {
        "artifact": stage.folder,
        "kind": stage.step.kind,
        "identity": stage.identity,
        "inputs": {port: [[label, s.folder] for label, s in given] for port, given in stage.inputs.items()},
    }

    def change(record: dict[str, Any]) -> dict[str, Any]:
        failed = {name: folder for name, folder in record.get("failed", {}).items() if name != stage.name}
        stages = {**record["stages"], stage.name: entry}
        ordered = {name: stages[name] for name in [*order, *stages] if name in stages}
        kept = {name: value for name, value in record.items() if name not in ("stages", "failed")}
        return {"recipe": Path(file).name, **kept, "stages": ordered, **({"failed": failed} if failed else {})}

    store.update_run(run, change)


def _work(store: Store, stage: Planned, held: Lease, base: str, options: dict[str, Any], view: View | None) -> None:
    scratch = store.scratch(stage.folder)
    spec = {
        "store": store.url,
        "kind": stage.step.kind,
        "config": stage.step.config.model_dump(mode="json"),
        "identity": stage.identity,
        "inputs": {port: [[label, s.folder] for label, s in given] for port, given in stage.inputs.items()},
        "gives": stage.gives,
        "base": base,
        "options": options,
        "lease": held.told(),
    }
    with whole_file(scratch / SPEC) as partial:
        partial.write_text(json.dumps(spec))
    log = scratch / LOG
    started = time.monotonic()
    last: dict[str, Any] = {}
    with contextlib.ExitStack() as opened:
        output = opened.enter_context(open_log(log))
        read, write = os.pipe()
        events = opened.enter_context(os.fdopen(read))
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.execution.keeper", str(os.getpid()), str(scratch / SPEC)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write, *held.descriptors),
                env={
                    **threads.environment(),
                    "FLYWHEEL_EVENTS": str(write),
                    "PYTHONHASHSEED": "0",
                    "TOKENIZERS_PARALLELISM": "true",
                },
            )
        finally:
            os.close(write)
        try:
            for line in events:
                try:
                    event = json.loads(line)
                except ValueError:  # cut short by a kill
                    continue
                if event.get("event") == HELD:
                    held.rest()
                    continue
                last = event
                if view:
                    view.event(stage, last)
            code = process.wait()
            if code < 0:
                keeper.end_orphans()
            if -code in stops.SIGNALS or code == stops.exit_code(signal.SIGTERM):
                time.sleep(1)  # who stops all processes of a group stops this one, too: that is what is told then
        except BaseException:
            _end(process)
            raise
        finally:
            with contextlib.suppress(OSError):  # the disk may be full
                for printed in scratch.rglob("*.log"):  # libraries and people's own code print what they like
                    redact_file(printed)
    if code == 0:
        if view:
            found = store.get(stage.folder)
            seconds = time.monotonic() - started
            spent = spending([found]) if found else {}
            done = {"event": "done", "seconds": seconds, "rows": found.rows if found else 0}
            view.event(stage, {**done, "spent": spent} if spent else done)
        return
    if code == Waiting.exit_code:
        raise Waiting(last.get("text", "waiting for people"))
    if last.get("event") == "failed":
        text, unexpected = str(last["text"]), bool(last.get("unexpected"))
    else:
        fields = list(type(stage.step.config).model_fields)
        text, unexpected = f"its process {killed(-code, fields) if code < 0 else f'ended with code {code}'}", True
    kind = Superseded if last.get("superseded") else UserError if code == UserError.exit_code else StageFailed
    tail = _tail(log) if unexpected else ""
    raise kind(f"stage `{stage.name}` ({stage.step.kind}): {text}{tail}")


def make(where: Store, stage: Planned, held: Lease, base: Path, view: View | None = None) -> Artifact:
    """Carry out one stage, that no recipe names, in a process of its own.

    Raises:
        StageFailed: it could not finish.
    """
    prepare(where, stage, anew=False)
    if view:
        view.start([stage])
    try:
        _work(where, stage, held, str(base), {"wait": False}, view)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full
            note_failure(where, "", stage, error)
        raise
    finally:
        if view:
            view.stop()
    found = where.get(stage.folder)
    if found is None:
        raise StageFailed(f"stage `{stage.name}` ended without an artifact.")
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have the worker close what is open and end, and all that it started."""
    process.terminate()
    try:
        process.wait(timeout=keeper.GRACE_S + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = redacted(log.read_text(errors="replace")).splitlines()[-lines:]
    except OSError:
        return ""
    return "\n".join([f"\nThe end of its log ({log}):", *(f"  {line}" for line in text)]) if text else ""
