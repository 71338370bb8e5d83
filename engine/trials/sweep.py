"""A sweep: a recipe run with several values and seeds, what they share made once, and a table of what came out.

Every trial is a run of its own name. What is in the store is not made again, so a sweep that was stopped goes on when it is run again,
and one with more values or seeds adds to the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import FlywheelError, StageFailed, UserError, Waiting
from engine.execution.one_stage import View
from engine.execution.runner import run_plan
from engine.plan.checks import check
from engine.plan.plan import Planned, make_plan
from engine.plan.recipe import Recipe, called, load_recipe
from engine.statistics.bootstrap import Interval
from engine.statistics.differences import PAIRED, crossed_mean
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.trials.comparison import measurements, same_answers
from engine.trials.trial_settings import Over, Trial, trials

Measure = tuple[str, str, str]  # stage, model, metric
Prompts = dict[str, float]


@dataclass(frozen=True)
class SettingLine:
    """One metric with one setting.

    Attributes:
        mean: over prompts and seeds; its interval is for other prompts, and other seeds where there were several.
        seeds: the mean with each seed.
        difference: to the first setting, taken prompt by prompt and seed by seed where they are the same; None of the first.
    """

    setting: str
    mean: Interval
    seeds: list[float]
    difference: Interval | None

    @property
    def beyond_noise(self) -> bool:
        told = self.difference
        return told is not None and (told.low > 0 or told.high < 0)


@dataclass(frozen=True)
class Sweep:
    """What came out: for each metric that is not the same with all settings, a line a setting. Metrics of Verdicts and tables come first,
    then where the curves of training end (`model` is empty).

    Attributes:
        made, shared: artifacts of all trials together, and those that several have.
        failed: trial -> why.
    """

    name: str
    trials: list[Trial]
    lines: dict[Measure, list[SettingLine]]
    made: int
    shared: int
    failed: dict[str, FlywheelError]


def sweep(
    recipe: str | Path,
    over: Sequence[Over],
    *,
    seeds: int = 1,
    drawn: int | None = None,
    store: str | None = None,
    overrides: list[str] | None = None,
    only: list[str] | None = None,
    name: str | None = None,
    view: Callable[[int, int, Trial], View | None] = lambda number, count, trial: None,
    jobs: int | None = None,
    workers: int | None = None,
) -> Sweep:
    """Run a recipe with all settings and seeds, one after the other, and tell what came out.

    Args:
        seeds, drawn: see `engine.trials.trial_settings.trials`.
        view: of each trial, given its number from 1 and how many there are.
        name: what the sweep's runs are called by instead of the recipe's name. The others as in `flywheel.run`.

    Raises:
        UserError: a setting is wrong; nothing has run then.
    """
    plain = called(load_recipe(recipe, overrides), name)
    tried = trials(plain, list(over), seeds, drawn)
    where = Store(store or plain.store)
    told = {one.name: called(load_recipe(recipe, [*(overrides or []), *one.overrides]), one.name) for one in tried}
    plans = {run: _plan(one, where, only) for run, one in told.items()}
    failed: dict[str, FlywheelError] = {}
    done: dict[str, dict[str, Artifact]] = {}
    for number, trial in enumerate(tried, 1):
        try:
            done[trial.name] = run_plan(
                told[trial.name], where, only=only, view=view(number, len(tried), trial), jobs=jobs,
                how={"workers": workers, "executor": plain.executor},
            )  # fmt: skip
        except (StageFailed, Waiting) as error:  # the others may come to their end
            failed[trial.name] = error
    folders = [[stage.folder for stage in plan] for plan in plans.values()]
    every = {folder for each in folders for folder in each}
    shared = sum(sum(folder in each for each in folders) > 1 for folder in every)
    return Sweep(plain.name, tried, _lines(tried, done), len(every), shared, failed)


def _plan(recipe: Recipe, where: Store, only: list[str] | None) -> list[Planned]:
    plan = make_plan(recipe, where, only)
    try:
        check(recipe, plan, where, offline=True)
    except UserError as error:
        raise UserError(f"{recipe.name}: {error}") from None
    return plan


# -- the table -----------------------------------------------------------------------------------------------------------


def _lines(tried: list[Trial], done: dict[str, dict[str, Artifact]]) -> dict[Measure, list[SettingLine]]:
    found = {run: _measures(artifacts) for run, artifacts in done.items()}
    beside = _fitted_beside(done)
    by_setting: dict[str, list[str]] = {}
    for trial in tried:
        if trial.name in found:
            by_setting.setdefault(trial.setting, []).append(trial.name)
    told: dict[Measure, list[SettingLine]] = {}
    for measure in dict.fromkeys(measure for one in found.values() for measure in one):
        values = {
            setting: [found[run][measure] for run in runs if measure in found[run]]
            for setting, runs in by_setting.items()
        }
        values = {setting: each for setting, each in values.items() if each}
        if len(found) > 1 and all(each == found[tried[0].name].get(measure) for v in values.values() for each in v):
            continue  # no setting and no seed changes it
        if measure in beside:
            continue
        first = next(iter(values.values()))
        told[measure] = [_line(setting, each, None if each is first else first) for setting, each in values.items()]
    return told


def _fitted_beside(done: dict[str, dict[str, Artifact]]) -> set[Measure]:
    """What tables alone tell of models whose answers are the same in all trials: it moves with the models that they are fitted beside."""
    told: set[Measure] = set()
    for stage in dict.fromkeys(stage for artifacts in done.values() for stage in artifacts):
        each = [artifacts[stage] for artifacts in done.values() if stage in artifacts]
        answers = [measurements(artifact) for artifact in each]
        unmoved = same_answers(*answers)
        told |= {
            (stage, model, metric) for artifact in each for model, metric in _table(artifact) if model in unmoved
        } - {(stage, *measure) for one in answers for measure in one}
    return told


def _line(setting: str, each: list[Prompts], first: list[Prompts] | None) -> SettingLine:
    matrix = _matrix(each)
    difference = None
    if first is not None:
        # Seed by seed as far as both have them; prompt by prompt where all of them have the same.
        both = min(len(each), len(first))
        joint = _matrix([*each[:both], *first[:both]])
        difference = crossed_mean(joint[:, :both] - joint[:, both:])
    return SettingLine(setting, crossed_mean(matrix), [sum(one.values()) / len(one) for one in each], difference)


def _matrix(each: list[Prompts]) -> NDArray[np.float64]:
    """Of shape (prompts, seeds): of the prompts that all have. Where too few are the same in all, a mean each, of shape (1, seeds)."""
    common = sorted(set.intersection(*(set(one) for one in each)))
    if len(common) >= PAIRED * max(len(one) for one in each):
        return np.array([[one[prompt] for one in each] for prompt in common])
    return np.array([[sum(one.values()) / len(one) for one in each]])


def _measures(artifacts: dict[str, Artifact]) -> dict[Measure, Prompts]:
    """All numbers of a run: of Verdicts by prompt, of tables and of curves' ends one of each."""
    told: dict[Measure, Prompts] = {}
    ends: dict[Measure, Prompts] = {}
    for stage, artifact in artifacts.items():
        told |= {(stage, model, metric): values for (model, metric), values in measurements(artifact).items()}
        for (model, metric), value in _table(artifact).items():
            told.setdefault((stage, model, metric), {"": value})
        metrics = artifact.metrics()
        for metric in metrics.columns if metrics is not None else []:
            last = metrics[metric].drop_nulls() if metrics is not None and metric != "step" else []
            if len(last):
                ends[stage, "", metric] = {"": float(last[-1])}
    return told | ends


def _table(artifact: Artifact) -> dict[tuple[str, str], float]:
    """The numbers of a `table.json`, without the ends of intervals."""
    if "table.json" not in artifact.manifest["files"]:
        return {}
    table: dict[str, dict[str, Any]] = artifact.read_json("table.json")
    return {
        (model, metric): float(value)
        for model, row in table.items()
        for metric, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not metric.endswith(("_low", "_high"))
    }
