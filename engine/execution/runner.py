"""Carry out a plan: one worker process a stage, in order, skipping what the store already holds.

Kill it at any moment: finished artifacts stay, committed partitions and checkpoints stay, and running again goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from engine.errors import StageFailed, UserError, Waiting
from engine.execution import threads
from engine.execution.again import note_failure, prepare
from engine.execution.lock import lock
from engine.plan.checks import check
from engine.plan.inputs import External, Say
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import Recipe, load_recipe
from engine.redaction import open_log, redact_file, redacted
from engine.store.artifact import Artifact
from engine.store.store import Store
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
    retry_failed: bool = False,
    view: View | None = None,
) -> dict[str, Artifact]:
    """Run a recipe to its end and return stage name -> artifact. What the store already holds is not run again.

    Args:
        recipe: the YAML file.
        store: URL of the store; else the recipe's, else the default one.
        overrides: `STAGE.FIELD=VALUE` settings on top of the recipe.
        only: run these stages and what they need.
        wait: where people have to rank, wait for them instead of raising `Waiting`.
        retry_failed: make those stages anew that asked a server and had rows that did not make it: answers that were good are
            kept, the others are asked for again. What was made of a stage follows where that gave other rows.

    Raises:
        UserError: the recipe is wrong. StageFailed: a stage could not finish. Waiting: people have to rank first.
    """
    loaded = load_recipe(recipe, overrides)
    where = Store(store or loaded.store)
    return run_plan(loaded, where, only=only, wait=wait, retry_failed=retry_failed, view=view)


def run_plan(
    recipe: Recipe,
    where: Store,
    *,
    only: list[str] | None = None,
    wait: bool = False,
    retry_failed: bool = False,
    view: View | None = None,
    record: bool = True,
) -> dict[str, Artifact]:
    """Plan a parsed recipe and carry it out in this store; `record` notes it as a run. As `run` else."""
    notes: list[str] = []
    plan = make_plan(recipe, where, only, say=notes.append)
    check(recipe, plan, where, offline=True)  # an answer may be in the cache of a server that is gone
    done: dict[str, Artifact] = {}
    if view:
        view.start(plan)
    for note in dict.fromkeys(notes):
        _saying(view, plan[0])(note)
    try:
        for stage in plan:
            found = where.get(stage.folder)
            anew = _why_anew(stage, found, done, retry_failed) if found else None
            if found is None or anew:
                if anew and view:
                    view.event(stage, {"event": "say", "text": anew})
                for given in stage.inputs.values():
                    for _, source in given:
                        if isinstance(source, External):
                            source.adopt(where, _saying(view, stage))
                with lock(where, stage.folder):
                    try:
                        prepare(where, stage, anew=anew is not None)
                        _work(where, stage, str(recipe.base), {"wait": wait}, view)
                    except BaseException as error:
                        note_failure(where, recipe.name if record else "", stage, error)
                        raise
                found = where.get(stage.folder)
                if found is None:
                    raise StageFailed(f"stage `{stage.name}` ended without an artifact.")
            elif view:
                view.event(stage, {"event": "cached", "rows": found.rows})
            done[stage.name] = found
            if record:
                _record(where, recipe.name, recipe.file, stage, list(recipe.steps))
    finally:
        if view:
            view.stop()
    return done


def _saying(view: View | None, stage: Planned) -> Say:
    """Says a line beside a stage, where somebody watches."""

    def say(text: str) -> None:
        if view:
            view.event(stage, {"event": "say", "text": text})

    return say


def _why_anew(stage: Planned, found: Artifact, done: dict[str, Artifact], retry_failed: bool) -> str | None:
    """Why a finished stage is made anew under the same key; None if it stays."""
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
    record = store.run(run) or {"recipe": Path(file).name, "stages": {}}
    entry = {
        "artifact": stage.folder,
        "kind": stage.step.kind,
        "identity": stage.identity,
        "inputs": {port: [[label, s.folder] for label, s in given] for port, given in stage.inputs.items()},
    }
    failed = record.get("failed", {})
    if record["stages"].get(stage.name) == entry and stage.name not in failed:
        return
    failed.pop(stage.name, None)
    stages = {**record["stages"], stage.name: entry}
    record["stages"] = {name: stages[name] for name in [*order, *stages] if name in stages}
    store.put(json.dumps(record, indent=1).encode(), "runs", f"{run}.json")


def _work(store: Store, stage: Planned, base: str, options: dict[str, Any], view: View | None) -> None:
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
    }
    spec_file = scratch / SPEC
    spec_file.write_text(json.dumps(spec))
    log = scratch / LOG
    started = time.monotonic()
    read, write = os.pipe()
    last: dict[str, Any] = {}
    with open_log(log) as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.execution.worker", str(spec_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            env={
                **threads.environment(),
                "FLYWHEEL_EVENTS": str(write),
                "PYTHONHASHSEED": "0",
                "TOKENIZERS_PARALLELISM": "true",
            },
        )
        os.close(write)
        try:
            with os.fdopen(read) as events:
                for line in events:
                    last = json.loads(line)
                    if view:
                        view.event(stage, last)
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        finally:
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
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        text, unexpected = f"its process {ended}", True
    kind = UserError if code == UserError.exit_code else StageFailed
    tail = f"\nThe end of its log ({log}):\n" + _tail(log) if unexpected else ""
    raise kind(f"stage `{stage.name}` ({stage.step.kind}): {text}{tail}")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join("  " + line for line in redacted(log.read_text(errors="replace")).splitlines()[-lines:])
