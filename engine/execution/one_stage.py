"""One stage's artifact: the one in the store, or one that is made now, by us or by another run that has begun already.

Stages side by side have a thread each, and a store of its own: a store knows one lease.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.errors import FlywheelError, StageFailed, UserError, Waiting
from engine.execution.again import note_failure, prepare
from engine.execution.progress_note import ProgressNote
from engine.execution.stage_process import Crew, StageProcess
from engine.plan.inputs import External, Say
from engine.plan.plan import Planned
from engine.redaction import open_log, redact_file, redacted
from engine.shortage import killed, shortage
from engine.store.artifact import Artifact
from engine.store.lease import HELD, Lease, Superseded, lease
from engine.store.store import Store
from engine.store.whole_file import whole_file
from engine.store.writer import ArtifactWriter
from engine.view.spending import spending
from engine.view.unfinished import LOG, SPEC


class View(Protocol):
    """Somebody who watches a run (see `engine.execution.progress`). One event comes at a time, of any of the stages under way."""

    def start(self, plan: list[Planned]) -> None: ...
    def event(self, stage: Planned, event: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


@dataclass
class Maker:
    """Makes stages, in any thread.

    Attributes:
        url: of the store.
        run: whose record a failed stage stands in; empty: none.
        base: the folder of the recipe.
        options: of the run, for its workers.
    """

    url: str
    run: str
    base: str
    options: dict[str, Any]
    crew: Crew
    view: View | None = None
    no_wait: bool = False
    retry_failed: bool = False
    _adopting: threading.Lock = field(default_factory=threading.Lock)

    def have(self, stage: Planned, done: Mapping[str, Artifact], ahead: StageProcess | None = None) -> Artifact:
        """The stage's artifact, made now if need be.

        Args:
            done: those that it takes from.
            ahead: its process, if it was started already.
        """
        store = Store(self.url)
        try:
            with shortage_told(stage):
                return self._have(store, stage, done, ahead)
        finally:
            if ahead:
                self.crew.dismiss(ahead)

    def _have(self, store: Store, stage: Planned, done: Mapping[str, Artifact], ahead: StageProcess | None) -> Artifact:
        say = saying(self.view, stage)
        found = store.get(stage.folder)
        for given in stage.inputs.values():
            for _, source in given:
                if isinstance(source, External):
                    with self._adopting:  # two stages may take the same
                        self.crew.pause(0)
                        self._adopt(store, source, say)
        with lease(store, stage.folder, no_wait=self.no_wait, say=say, pause=self.crew.pause) as held:
            before, found = found, store.get(stage.folder)
            remade = found is not None and (before is None or found.manifest != before.manifest)  # while this waited
            anew = why_anew(store, stage, found, done, self.retry_failed and not remade)
            if found is None or anew:
                if anew:
                    say(anew)
                return self._make(store, stage, held, anew is not None, ahead)
        if self.view:
            self.view.event(stage, {"event": "cached", "rows": found.rows})
        return found

    def make(self, stage: Planned, held: Lease, store: Store) -> Artifact:
        """Carry out a stage whose lease is held.

        Raises:
            StageFailed: it could not finish.
        """
        return self._make(store, stage, held, False, None)

    def start_ahead(self, stage: Planned) -> StageProcess:
        """Its process, which imports what it needs and waits."""
        config = stage.step.config
        return self.crew.start(self._spec(Store(self.url), stage), config.warm_up(), environment=config.environment)

    def _spec(self, store: Store, stage: Planned) -> Path:
        return store.workplace() / stage.folder / SPEC

    def _adopt(self, store: Store, source: External, say: Say) -> None:
        """Bring an input that no stage makes into the store, unless it is there, whole.

        Raises:
            Damaged: it is an artifact that can't be made anew from here.
        """
        found, lack = source.there(store)
        if found:
            return
        with lease(store, source.folder, no_wait=self.no_wait, say=say, pause=self.crew.pause):
            found, lack = source.there(store)  # another may have brought it meanwhile
            if lack:
                say(f"{source.name} is read anew: {lack}")
                ArtifactWriter(store, source.folder).discard()
            source.adopt(store, say)

    def _make(self, store: Store, stage: Planned, held: Lease, anew: bool, process: StageProcess | None) -> Artifact:
        try:
            prepare(store, stage, anew)
            self._work(store, stage, held, process)
        except BaseException as error:
            with contextlib.suppress(Exception):  # the disk may be full, the store away
                note_failure(store, self.run, stage, error)
            raise
        found = store.get(stage.folder)
        if found is None:
            raise StageFailed(f"stage `{stage.name}` ended without an artifact.")
        return found

    def _work(self, store: Store, stage: Planned, held: Lease, process: StageProcess | None) -> None:
        scratch = store.scratch(stage.folder)
        spec = {
            "store": store.url,
            "kind": stage.step.kind,
            "config": stage.step.config.model_dump(mode="json"),
            "identity": stage.identity,
            "inputs": {port: [[label, s.folder] for label, s in given] for port, given in stage.inputs.items()},
            "gives": stage.gives,
            "base": self.base,
            "options": self.options,
            "lease": held.told(),
            "run": self.run,
            "stage": stage.name,
        }
        log = scratch / LOG
        started = time.monotonic()
        last: dict[str, Any] = {}
        try:
            with whole_file(scratch / SPEC) as partial:
                partial.write_text(json.dumps(spec))
            with open_log(log) as output, ProgressNote(scratch) as note:
                process = process or self.crew.start(scratch / SPEC, (), output, stage.step.config.environment)
                process.begin(output, held.descriptors)
                for event in process.events():
                    if event.get("event") == HELD:
                        held.rest()
                        continue
                    last = event
                    note.hear(event)
                    if self.view:
                        self.view.event(stage, event)
                code = self.crew.wait(process)
        except BaseException:
            if process:
                self.crew.dismiss(process)
            raise
        finally:
            with contextlib.suppress(OSError):  # the disk may be full
                for printed in scratch.rglob("*.log"):  # libraries and people's own code print what they like
                    redact_file(printed)
        if code == 0:
            shutil.rmtree(scratch, ignore_errors=True)  # the worker has, but for what was noted meanwhile
            self._tell(stage, store.get(stage.folder), time.monotonic() - started)
            return
        error = _error(stage, code, last, log)
        if self.view and last.get("event") not in ("failed", "waiting"):  # it could not say so itself
            self.view.event(stage, {"event": "failed", "text": str(error)})
        raise error

    def _tell(self, stage: Planned, made: Artifact | None, seconds: float) -> None:
        if self.view:
            spent = spending([made]) if made else {}
            done = {"event": "done", "seconds": seconds, "rows": made.rows if made else 0}
            self.view.event(stage, {**done, "spent": spent} if spent else done)


@contextlib.contextmanager
def shortage_told(stage: Planned) -> Generator[None]:
    """What there is too little of is told in words, with the stage's name.

    Raises:
        StageFailed: the disk is full, or memory is short.
    """
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        if words := shortage(error):
            raise StageFailed(f"stage `{stage.name}` ({stage.step.kind}): {words}") from error
        raise


def saying(view: View | None, stage: Planned) -> Say:
    """Says a line beside a stage, where somebody watches."""

    def say(text: str) -> None:
        if view:
            view.event(stage, {"event": "say", "text": text})

    return say


def why_anew(
    store: Store, stage: Planned, found: Artifact | None, done: Mapping[str, Artifact], retry_failed: bool
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


def _error(stage: Planned, code: int, last: dict[str, Any], log: Path) -> Exception:
    """Why a stage's process ended with this code, by the last that it said."""
    if code == Waiting.exit_code:
        return Waiting(last.get("text", "waiting for people"))
    if last.get("event") == "failed":
        text, unexpected = str(last["text"]), bool(last.get("unexpected"))
    else:
        fields = list(type(stage.step.config).model_fields)
        text, unexpected = f"its process {killed(-code, fields) if code < 0 else f'ended with code {code}'}", True
    kind = Superseded if last.get("superseded") else UserError if code == UserError.exit_code else StageFailed
    tail = _tail(log) if unexpected else ""
    return kind(f"stage `{stage.name}` ({stage.step.kind}): {text}{tail}")


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = redacted(log.read_text(errors="replace")).splitlines()[-lines:]
    except OSError:
        return ""
    return "\n".join([f"\nThe end of its log ({log}):", *(f"  {line}" for line in text)]) if text else ""
