"""A preview: a few rows through the stages of a recipe, with the real model or server, in a store that is thrown away.

Stages that ask no model see all that there is (up to `MOST` rows), so that what they make of the first rows is what the run makes of
them; one that asks a model gets the first few rows. Rows keep their ids and stages their seeds, so that what is asked for these
rows is what the run asks. Nothing is trained: where a stage's weights are not there yet, those that it starts from stand in for them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from engine.errors import FlywheelError, UserError, nearest
from engine.execution.one_stage import Maker, View
from engine.execution.stage_process import Crew
from engine.plan.checks import check
from engine.plan.inputs import External, Say, silent
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import load_recipe
from engine.stage.stage import PREVIEW
from engine.store.artifact import MANIFEST, Artifact
from engine.store.lease import lease
from engine.store.schema import DATASETS, MODELS, united
from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.store.writer import ArtifactWriter
from engine.view.spending import Spending, spending

MOST = 10_000  # rows that a stage which asks no model is given of each input


@dataclass(frozen=True)
class Exchanged:
    """One request of a model as it was sent, and what came back.

    Attributes:
        request: the body that the server got; of a model on this machine `prompt`, the text of the token ids.
        answer: its text; None where there is none, for `failure` then.
    """

    who: str
    request: dict[str, Any]
    answer: str | None
    failure: str | None


@dataclass(frozen=True)
class Tried:
    """What a preview found of one stage.

    Attributes:
        skipped: why it was not tried; empty if it was. failed: what it said in the end, if it failed.
        rows_in, rows_out: of this preview. rejected: by reason.
        rows: the first that it made, in the schema of `kind`.
        seconds: that it worked, its start included.
        factor: how many times as much the run has to do; None where nobody can say.
    """

    stage: str
    stage_kind: str
    kind: str
    skipped: str = ""
    failed: str = ""
    rows_in: int = 0
    rows_out: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: {})
    rows: list[dict[str, Any]] = field(default_factory=lambda: [])
    exchanges: list[Exchanged] = field(default_factory=lambda: [])
    seconds: float = 0.0
    spent: Spending = field(default_factory=lambda: {})
    factor: float | None = None

    @property
    def expected(self) -> Spending:
        """What the run is likely to spend: as much a row as the preview."""
        return {name: amount * (self.factor or 0.0) for name, amount in self.spent.items()}


@dataclass(frozen=True)
class _Have:
    """What there is of a stage's result, or of an input: an artifact, and how many rows the run will have of it.

    Attributes:
        folder, key: under which the stages that take it know it.
        small: it was made here of a few rows already, and is given on as it is.
    """

    artifact: Artifact
    folder: str
    key: str
    full: float | None
    small: bool = False


def preview(
    recipe: str | Path,
    stage: str | None = None,
    *,
    rows: int = 5,
    store: str | None = None,
    overrides: list[str] | None = None,
    say: Say = silent,
    view: Callable[[Planned], View] | None = None,
) -> Iterator[Tried]:
    """Try a recipe, or a stage of it with what it needs, on a few rows; each stage as it is done. Nothing is kept.

    Args:
        rows: that a stage which asks a model is given, of each input.

    Raises:
        UserError: the recipe is wrong, or has no such stage.
    """
    loaded = load_recipe(recipe, overrides)
    if stage is not None and stage not in loaded.steps:
        raise UserError(f"{loaded.file}: there is no stage `{stage}`.{nearest(stage, loaded.steps)}")
    where = Store(store or loaded.store)
    plan = make_plan(loaded, where, [stage] if stage else None)
    check(loaded, plan, where)
    with TemporaryDirectory(prefix="flywheel-preview-") as folder:
        trial = _Preview(where, Path(folder), loaded.base, rows, {"wait": False, PREVIEW: True}, say, view)
        for planned in plan:
            yield trial.tried(planned, planned.name == stage)


@dataclass
class _Preview:
    store: Store
    folder: Path
    base: Path
    rows: int
    options: dict[str, Any]
    say: Say
    view: Callable[[Planned], View] | None
    have: dict[str, _Have] = field(default_factory=lambda: {})

    def tried(self, stage: Planned, wanted: bool) -> Tried:
        """A stage on what there is."""
        told = Tried(stage.name, stage.step.kind, stage.gives)
        done = self.store.get(stage.folder) if stage.cached else None
        asks = _asks(stage)
        if done and not wanted and (stage.gives in MODELS or not asks):
            self.have[stage.folder] = _Have(done, stage.folder, stage.key, done.rows)
            return replace(told, skipped="it is in the store")
        if stage.gives in MODELS:
            return replace(told, skipped=self._stand_in(stage))
        if not type(stage.step.config).previewed:
            return replace(told, skipped="it goes to people")
        try:
            given = {port: [self._input(source) for _, source in some] for port, some in stage.inputs.items()}
            missing = [
                label
                for port, some in stage.inputs.items()
                for (label, _), one in zip(some, given[port], strict=True)
                if one is None
            ]
            if missing:
                return replace(told, skipped=f"it takes {', '.join(missing)}, which there is nothing of")
            return self._try(stage, {port: [one for one in some if one] for port, some in given.items()}, told, asks)
        except FlywheelError as error:
            return replace(told, failed=str(error))

    def _stand_in(self, stage: Planned) -> str:
        for some in stage.inputs.values():
            for label, source in some:
                if _kind(source) in MODELS and (start := self._input(source)):
                    self.have[stage.folder] = _Have(start.artifact, stage.folder, stage.key, None)
                    return f"nothing is trained here; `{label}`, which it starts from, stands in for it"
        return "nothing is trained here, and it starts from nothing"

    def _input(self, source: Planned | External) -> _Have | None:
        """What there is of an input; a file is read, a model outside the store is noted."""
        if source.folder in self.have or isinstance(source, Planned):
            return self.have.get(source.folder)
        found, _ = source.there(self.store)
        artifact = found or source.adopt(Store(str(self.folder / "inputs")), self.say)
        self.have[source.folder] = _Have(artifact, source.folder, source.key, artifact.rows)
        return self.have[source.folder]

    def _try(self, stage: Planned, given: dict[str, list[_Have]], told: Tried, asks: bool) -> Tried:
        config = stage.step.config
        smaller = config.preview(self.rows) if asks else config
        limits = {port: self.rows if asks and port not in type(config).whole else MOST for port in given}
        here = Store(str(self.folder / stage.name))
        came_in = sum(_place(here, one, limits[port], asks) for port, some in given.items() for one in some)
        heard = _Listening(self.view(stage) if self.view else None)
        maker = Maker(here.url, "", str(self.base), self.options, Crew(), heard)
        small = replace(stage, step=replace(stage.step, config=smaller))
        started = time.monotonic()
        failed, made = "", None
        try:
            heard.start([small])
            with lease(here, stage.folder) as held:
                made = maker.make(small, held, here)
        except FlywheelError as error:
            failed = str(error)
        finally:
            heard.stop()
        seconds = time.monotonic() - started
        factor = self._factor(stage, small, given)
        if made:
            full = made.rows * factor if factor is not None else None
            small_in = any(one.small for some in given.values() for one in some)
            self.have[stage.folder] = _Have(made, stage.folder, stage.key, full, asks or small_in)
        batch = next(made.batches(rows=self.rows), None) if made and made.kind != "TokenBlock" else None
        return replace(
            told, failed=failed, rows_in=came_in, rows_out=made.rows if made else 0,
            rejected=made.manifest["rejected"] if made else {}, rows=batch.to_pylist() if batch is not None else [],
            exchanges=heard.found, seconds=seconds, spent=spending([made]) if made else heard.spent, factor=factor,
        )  # fmt: skip

    def _factor(self, stage: Planned, small: Planned, given: dict[str, list[_Have]]) -> float | None:
        """How many times as much the run has to do: by what the stage says of itself, else by the rows that come in cut."""
        full: dict[str, float] = {}
        cut: dict[str, float] = {}
        for port, some in given.items():
            known = [one.full for one in some if one.artifact.kind in DATASETS]
            if None in known:
                return None
            full[port] = sum(rows for rows in known if rows is not None)
            here = Store(str(self.folder / stage.name))
            placed = [here.get(one.folder) for one in some if one.artifact.kind in DATASETS]
            cut[port] = sum(one.rows for one in placed if one)
        expected = stage.step.config.expected_rows({port: round(rows) for port, rows in full.items()})
        tried = small.step.config.expected_rows({port: round(rows) for port, rows in cut.items()})
        if expected and tried:
            return expected / tried
        counted = [port for port in given if cut[port] and port not in type(stage.step.config).whole]
        return max((full[port] / cut[port] for port in counted), default=1.0)


def _asks(stage: Planned) -> bool:
    """Whether a model answers, scores or is measured in it, here or on a server."""
    models = any(_kind(source) in MODELS for some in stage.inputs.values() for _, source in some)
    return models or stage.step.config.asks() or getattr(stage.step.config, "server", None) not in (None, [])


def _kind(source: Planned | External) -> str:
    return source.gives if isinstance(source, Planned) else source.kind


def _place(here: Store, one: _Have, most: int, by_prompt: bool) -> int:
    """Put an artifact into a store under the name by which a stage takes it, of rows the first; how many rows that are.

    The manifest says what it is in the run, so that the stage finds there what it was planned with.

    Args:
        by_prompt: where rows belong to prompts, so many prompts with all their rows.
    """
    artifact = one.artifact
    facts = {name: value for name, value in artifact.manifest.items() if name not in ("format", "seal", "beside")}
    if artifact.kind in DATASETS and artifact.kind != "TokenBlock":
        if there := here.get(one.folder):
            return there.rows
        writer = ArtifactWriter(here, one.folder)
        if (table := _first(artifact, artifact.rows if one.small else most, by_prompt)) is not None:
            writer.put_part("00000-preview", table, artifact.kind)
        made = writer.contents()
        more = {"files": made.files, "rows": made.rows, "digest": made.digest, "rejected": {}, "failed": 0}
        writer.seal({**facts, **more, "key": one.key})
        return made.rows
    target = Path(here.path("artifacts", one.folder))
    if not target.exists():
        target.mkdir(parents=True)
        if artifact.manifest["files"]:
            _link(artifact.path, target)
        (target / MANIFEST).write_bytes(sealed({**facts, "key": one.key}))
    return artifact.rows


def _first(artifact: Artifact, most: int, by_prompt: bool) -> pa.Table | None:
    """The first rows, or all of the first prompts; None where there are none."""
    taken: list[pa.Table] = []
    rows = 0
    prompts = set[str]()
    for batch in artifact.batches(rows=min(most, 10_000)):
        table = pa.Table.from_batches([batch])
        if by_prompt and "prompt_id" in table.column_names:
            names = table.column("prompt_id").to_pylist()
            for name in names:
                if len(prompts) < most:
                    prompts.add(name)
            kept = [i for i, name in enumerate(names) if name in prompts]
            taken.append(table.take(kept))
            if not kept:  # answers to a prompt stand together
                break
            continue
        taken.append(table.slice(0, most - rows))
        rows += len(taken[-1])
        if rows >= most:
            break
    return pa.concat_tables(united(taken), promote_options="default") if taken else None


def _link(source: Path, target: Path) -> None:
    """The files of a model, not copied where they need not be. What the preview writes is never one of them."""
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        if file.is_dir():
            (target / relative).mkdir(exist_ok=True)
        elif relative.parts[0] not in (MANIFEST, "logs"):
            try:
                os.link(file.resolve(), target / relative)
            except OSError:  # another disk
                shutil.copyfile(file, target / relative)


class _Listening:
    """A view that keeps what was asked, and hands everything else on."""

    def __init__(self, view: View | None) -> None:
        self._view = view
        self.found: list[Exchanged] = []
        self.spent: dict[str, float] = {}

    def start(self, plan: list[Planned]) -> None:
        if self._view:
            self._view.start(plan)

    def event(self, stage: Planned, event: dict[str, Any]) -> None:
        if event["event"] == "exchange":
            self.found.append(Exchanged(event["who"], event["request"], event.get("answer"), event.get("failure")))
            return
        if event["event"] == "tokens":
            self.spent = {"tokens_in": event["in"], "tokens_out": event["out"], "cost": event.get("cost", 0.0)}
        if self._view:
            self._view.event(stage, event)

    def stop(self) -> None:
        if self._view:
            self._view.stop()
