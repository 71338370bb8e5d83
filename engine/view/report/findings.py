"""What was asked of a run and what came out, in sentences for whoever has not seen it: each number with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from engine.stage.drawing import Intervals
from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval
from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.view.lineage import inputs_of
from engine.view.report.flow import Stop
from engine.view.spending import in_words, spending

MOST = 200_000  # rows that means are taken over here
Z = 1.959963984540054


@dataclass(frozen=True)
class Finding:
    """A question, and its answer in one sentence."""

    asked: str
    came_out: str


@dataclass(frozen=True)
class JudgeScore:
    """What a judge or a rule gave: over how many answers, the mean over prompts with its 95 % interval, and the middle half."""

    stage: str
    metric: str
    answers: int
    mean: Interval
    quarters: tuple[float, float]


def findings(stops: Sequence[Stop]) -> list[Finding]:
    """What is known, the answer to the run's main question first: evaluations, then people's judgement, then rows made, then rows kept."""
    done = [(stop, stop.artifact) for stop in stops if stop.artifact]
    # What compares models with a reference comes before what measures one thing alone; the last word before earlier ones.
    tables = sorted(reversed(done), key=lambda one: not any(isinstance(d, Intervals) for d in one[0].stage.drawings))
    found = [f for stop, a in tables if (f := _evaluation(stop, a))]
    found += [f for _, a in done if (f := _labelling(a))]
    if rows := _rows(stops):
        found.append(rows)
    return found or [Finding("to carry out its stages", f"{len(done)} of {len(stops)} are done")]


def _evaluation(stop: Stop, artifact: Artifact) -> Finding | None:
    if "table.json" not in artifact.manifest["files"]:
        return None
    table: dict[str, dict[str, Any]] = artifact.read_json("table.json")
    reference, prompts = artifact.manifest["summary"].get("reference"), artifact.manifest["summary"].get("prompts")
    on = f" on {prompts:,} prompts" if prompts else ""
    for drawing in stop.stage.drawings:
        if not (isinstance(drawing, Intervals) and drawing.made_of and reference):
            continue
        told = [
            f"{model}'s answers win {value:.0%} of comparisons with {reference}'s (95 % interval {low:.0%} to {high:.0%}), {_against_half(low, high)}"
            for model, line in table.items()
            if model != reference and (bounds := _bounds(line, drawing.metric))
            for value, low, high in [bounds]
        ]
        if told:
            others = ", ".join(model for model in table if model != reference)
            return Finding(f"whether {others} answer better than {reference}{on}", "; ".join(told))
    for metric in _measured(table):
        told = [
            f"{m} {v:.2f} ({low:.2f} to {high:.2f})"
            for m, line in table.items()
            if (b := _bounds(line, metric))
            for v, low, high in [b]
        ]
        if told:
            return Finding(
                f"how good {', '.join(table)} are{on}",
                f"{metric.replace('_', ' ')}, with its 95 % interval: {', '.join(told)}",
            )
    return None


def _against_half(low: float, high: float) -> str:
    return (
        "more than chance explains"
        if low > 0.5
        else "less than an even share"
        if high < 0.5
        else "which chance may explain"
    )


def _bounds(line: dict[str, Any], metric: str) -> tuple[float, float, float] | None:
    found = [line.get(name) for name in (metric, f"{metric}_low", f"{metric}_high")]
    numbers = [float(one) for one in found if isinstance(one, int | float) and math.isfinite(one)]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _measured(table: dict[str, dict[str, Any]]) -> list[str]:
    return [
        name.removesuffix("_low")
        for name in dict.fromkeys(n for line in table.values() for n in line)
        if name.endswith("_low")
    ]


def _labelling(artifact: Artifact) -> Finding | None:
    summary = artifact.manifest["summary"]
    agreement, people = summary.get("agreement"), summary.get("annotators")
    if artifact.kind != "Preference" or not isinstance(agreement, dict) or not isinstance(people, dict):
        return None
    rankings = sum(one.get("rankings", 0) for one in people.values())
    alpha: dict[str, Any] = agreement.get("alpha") or {}
    bounds = _bounds({"a": alpha.get("value"), "a_low": alpha.get("low"), "a_high": alpha.get("high")}, "a")
    agree = (
        f"they agree with Krippendorff's alpha {bounds[0]:.2f} (95 % interval {bounds[1]:.2f} to {bounds[2]:.2f}; 1 is full agreement, 0 is chance)"
        if bounds
        else "no prompt was ranked by two of them, so that their agreement is not known"
    )
    return Finding(
        "what people prefer",
        f"{len(people)} annotators gave {rankings:,} rankings, from which {artifact.rows:,} pairs were made; {agree}",
    )


def _rows(stops: Sequence[Stop]) -> Finding | None:
    """What came out of stages that no other stage of the run took from, as rows."""
    ends = [
        (s.name, a)
        for s in stops
        if (a := s.artifact) and a.kind in DATASETS and a.kind not in ("Verdict", "TokenBlock") and _ends(s, stops)
    ]
    if not ends:
        return None
    lost = sum(
        sum(s.artifact.manifest["rejected"].values()) for s in stops if s.artifact and s.artifact.kind in DATASETS
    )
    told = ", ".join(f"{a.rows:,} rows of {a.kind} in `{name}`" for name, a in ends)
    share = ""
    if lost:
        low, high = wilson(lost, lost + sum(a.rows for _, a in ends))
        share = f"; {lost:,} rows did not make it, {lost / (lost + sum(a.rows for _, a in ends)):.1%} (95 % interval {low:.1%} to {high:.1%})"
    spent = spending(s.artifact for s in stops if s.artifact)
    return Finding(
        f"rows of {' and '.join(sorted({a.kind for _, a in ends}))}",
        told + share + (f"; {in_words(spent)}" if spent else ""),
    )


def _ends(stop: Stop, stops: Sequence[Stop]) -> bool:
    return not any(
        stop.name in other.inputs for other in stops if not (other.artifact and other.artifact.kind == "Verdict")
    )


def last_rows(stops: Sequence[Stop], each: int = 4) -> list[tuple[Stop, list[dict[str, Any]]]]:
    """Some rows of the stages whose rows nothing else was made of, for runs that end in rows."""
    found: list[tuple[Stop, list[dict[str, Any]]]] = []
    for stop in stops:
        artifact = stop.artifact
        if (
            artifact
            and artifact.kind in DATASETS
            and artifact.kind not in ("Verdict", "TokenBlock")
            and _ends(stop, stops)
        ):
            first = next(artifact.batches(rows=each), None)
            found.append((stop, first.to_pylist() if first is not None else []))
    return found


def judge_scores(stops: Sequence[Stop]) -> list[JudgeScore]:
    """Means of what was judged, prompt by prompt: answers to one prompt resemble each other."""
    found: list[JudgeScore] = []
    for stop in stops:
        artifact = stop.artifact
        if (
            artifact is None
            or artifact.kind != "Verdict"
            or artifact.rows > MOST
            or not isinstance(artifact.manifest["summary"].get("scores"), dict)
        ):
            continue
        rows = artifact.to_polars().select("subject", "metric", "value").filter(pl.col("value").is_finite())
        prompts = _prompts(artifact)
        for (metric,), own in rows.group_by("metric", maintain_order=True):
            values = own["value"].to_numpy()
            clusters = [prompts.get(str(subject), str(subject)) for subject in own["subject"]]
            quarters = own["value"].quantile(0.25, "linear"), own["value"].quantile(0.75, "linear")
            mean = bootstrap.mean(values, clusters, artifact.manifest["seed"] or 0, str(metric))
            found.append(JudgeScore(stop.name, str(metric), len(own), mean, (quarters[0] or 0.0, quarters[1] or 0.0)))
    return found


def _prompts(verdicts: Artifact) -> dict[str, str]:
    """The answer's id -> its prompt's, for answers of what was judged."""
    found: dict[str, str] = {}
    for name in inputs_of(verdicts):
        source = read_artifact(verdicts.store, name)
        if source and source.kind == "Candidate" and source.rows <= MOST:
            table = source.to_table(["id", "prompt_id"])
            found |= dict(zip(table["id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
    return found


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    p, z2 = hits / of, Z**2
    middle, half = p + z2 / (2 * of), Z * math.sqrt(p * (1 - p) / of + z2 / (4 * of**2))
    return (middle - half) / (1 + z2 / of), (middle + half) / (1 + z2 / of)
