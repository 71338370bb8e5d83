"""What judges and rules gave, and by which rule: means over prompts, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import polars as pl

from engine.redaction import redacted
from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval
from engine.store.artifact import Artifact, read_artifact
from engine.view.lineage import inputs_of
from engine.view.report.flow import Stop

MOST = 200_000  # rows that means are taken over here


@dataclass(frozen=True)
class JudgeScore:
    """What a judge or a rule gave: over how many answers to how many prompts, the mean over prompts with its 95 % interval, and the middle half.

    Attributes:
        rule: how it is worked out, as the recipe has it; empty where a model was asked.
        judged: the stages whose answers these are; `models` who gave them.
        share: whether it is 0 or 1 of each answer, so that the mean is a share.
    """

    stage: str
    metric: str
    answers: int
    prompts: int
    mean: Interval
    quarters: tuple[float, float]
    rule: str = ""
    judged: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    share: bool = False


def judge_scores(stops: Sequence[Stop]) -> list[JudgeScore]:
    """Means of what was judged, prompt by prompt: answers to one prompt resemble each other."""
    found: list[JudgeScore] = []
    made = {stop.name for stop in stops if stop.artifact and stop.artifact.kind == "Candidate"}
    titles = {stop.folder: stop.name for stop in stops}
    for stop in stops:
        artifact = stop.artifact
        if (
            artifact is None
            or artifact.kind != "Verdict"
            or artifact.rows > MOST
            or not isinstance(artifact.manifest["summary"].get("scores"), dict)
        ):
            continue
        rows = artifact.to_polars().filter(pl.col("value").is_finite())
        models = tuple(
            titles.get(str(name), str(name)) for name in rows["model"].drop_nulls().unique(maintain_order=True)
        )
        prompts = _prompts(artifact)
        judged = tuple(name for name in stop.inputs if name in made)
        for (metric,), own in rows.group_by("metric", maintain_order=True):
            name, values = str(metric), own["value"].to_numpy()
            clusters = [prompts.get(str(subject), str(subject)) for subject in own["subject"]]
            quarters = own["value"].quantile(0.25, "linear"), own["value"].quantile(0.75, "linear")
            mean = bootstrap.mean(values, clusters, artifact.manifest["seed"] or 0, name)
            bounds = (quarters[0] or 0.0, quarters[1] or 0.0)
            found.append(JudgeScore(
                stop.name, name, len(own), len(set(clusters)), mean, bounds, rule_of(artifact, name), judged, models,
                share=set(values.tolist()) <= {0.0, 1.0},
            ))  # fmt: skip
    return found


def rule_of(artifact: Artifact, metric: str) -> str:
    """How a metric is worked out, if its stage's configuration has a rule by that name; empty otherwise."""
    config: dict[str, Any] = artifact.manifest["stage"]["config"]
    named = [cast(dict[str, Any], value) for value in config.values() if isinstance(value, dict)]
    rule = next((known[metric] for known in [config, *named] if isinstance(known.get(metric), str | dict)), "")
    if isinstance(rule, dict):
        rule = ", ".join(f"{name}: {value}" for name, value in cast(dict[str, Any], rule).items() if value is not None)
    return redacted(" ".join(rule.split()))


def _prompts(verdicts: Artifact) -> dict[str, str]:
    """The answer's id -> its prompt's, for answers of what was judged."""
    found: dict[str, str] = {}
    for name in inputs_of(verdicts):
        source = read_artifact(verdicts.store, name)
        if source and source.kind == "Candidate" and source.rows <= MOST:
            table = source.to_table(["id", "prompt_id"])
            found |= dict(zip(table["id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
    return found
