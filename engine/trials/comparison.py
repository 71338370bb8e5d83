"""Two runs held against each other: what was configured otherwise, what was measured, what was learnt, which rows are other.

Everything here knows rows by their schema and stages by what they left (`table.json`, Verdicts, metrics), and no stage kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from engine.statistics.differences import Difference, by_prompt, difference
from engine.store import run_records
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.view.rows import turns
from engine.view.run_history import changes, run_named
from engine.view.spending import Spending, spending

SAID = ("prompt_id", "sample", "annotator")  # by what answers, or judgements, of two runs belong to each other

CONTENT = ("text", "messages", "prompt", "completion", "completions", "chosen", "rejected", "ranks", "reference")


@dataclass(frozen=True)
class MetricPair:
    """One metric of one model in both runs: means over prompts, and how far apart they are.

    Attributes:
        difference: None where one of them has no value, only the tables have and give no interval, or with `same_answers`.
        same_answers: all that was measured of this model's own answers is the same in both; the number moved with those that it is fitted
            beside (Bradley-Terry, length-controlled rates).
    """

    stage: str
    model: str
    metric: str
    first: float | None
    second: float | None
    difference: Difference | None
    same_answers: bool = False


@dataclass(frozen=True)
class CurvePair:
    """A metric over steps in both runs: (step, value), thinned by nobody. A curve is one seed: there is no interval."""

    stage: str
    metric: str
    first: list[tuple[int, float]]
    second: list[tuple[int, float]]


@dataclass(frozen=True)
class Changed:
    """The rows of a stage in both runs.

    Attributes:
        same: rows of both that say the same; only_first, only_second: the others.
        matched: of those, how many belong to each other (answers to one prompt), and how many of these say something else.
        examples: (what belongs to both, in the first, in the second).
    """

    stage: str
    same: int
    only_first: int
    only_second: int
    matched: int = 0
    other: int = 0
    examples: list[tuple[str, str, str]] = field(default_factory=lambda: [])


@dataclass(frozen=True)
class RunComparison:
    """What `compare` found. `shared` are the stages that are the same artifact in both."""

    first: str
    second: str
    configured: dict[str, list[str]]
    shared: list[str]
    measured: list[MetricPair]
    learnt: list[CurvePair]
    changed: list[Changed]
    spent: tuple[Spending, Spending]
    seconds: tuple[float, float]

    @property
    def tested(self) -> list[MetricPair]:
        return [one for one in self.measured if one.difference]

    @property
    def beyond_noise(self) -> list[MetricPair]:
        return [one for one in self.tested if one.difference and one.difference.beyond_noise]


def compare(store: Store, first: str, second: str, examples: int = 3) -> RunComparison:
    """Hold the second run against the first.

    Args:
        first, second: a run, what it was (`NAME@1`), or a tag.
        examples: rows to show of each stage whose rows are other.

    Raises:
        UserError: there is no such run.
    """
    names = run_named(store, first), run_named(store, second)
    one, other = (_artifacts(store, name) for name in names)
    shared = [stage for stage in one if stage in other and one[stage].id == other[stage].id]
    both = [(stage, one[stage], other[stage]) for stage in one if stage in other and stage not in shared]
    everything = [list(each.values()) for each in (one, other)]
    return RunComparison(
        names[0],
        names[1],
        changes(store, *names),
        shared,
        [found for stage, a, b in both for found in _measured(stage, a, b)],
        [found for stage, a, b in both for found in _learnt(stage, a, b)],
        [found for stage, a, b in both if (found := _changed(stage, a, b, examples))],
        (spending(everything[0]), spending(everything[1])),
        (_seconds(everything[0]), _seconds(everything[1])),
    )


def _artifacts(store: Store, run: str) -> dict[str, Artifact]:
    made = run_records.made(run_records.read(store, run) or {})
    return {stage: found for stage, folder in made.items() if (found := store.get(folder))}


def _seconds(artifacts: list[Artifact]) -> float:
    return sum(a.manifest["timings"].get("wall_s", 0) for a in {a.id: a for a in artifacts}.values())


# -- what was measured ---------------------------------------------------------------------------------------------------


def measurements(artifact: Artifact) -> dict[tuple[str, str], dict[str, float]]:
    """(model, metric) -> prompt -> mean of its answers, of all Verdicts with a value. Of Verdicts on answers the prompt is the answer's: those
    to one prompt resemble each other."""
    if artifact.kind != "Verdict":
        return {}
    asked = _prompts(artifact)
    rows = pl.DataFrame(pl.from_arrow(artifact.to_table(["subject", "model", "metric", "value"])))
    rows = rows.filter(pl.col("value").is_not_null() & pl.col("value").is_finite())
    told: dict[tuple[str, str], dict[str, float]] = {}
    for (model, metric), group in rows.group_by(["model", "metric"], maintain_order=True):
        subjects: list[str] = group["subject"].to_list()
        prompts = [asked.get(subject, subject) for subject in subjects]
        told[str(model or ""), str(metric)] = by_prompt(prompts, group["value"].to_list())
    return told


def _prompts(artifact: Artifact) -> dict[str, str]:
    """Answer -> its prompt, of all answers that this was made from."""
    told: dict[str, str] = {}
    for entry in (entry for given in artifact.manifest["inputs"].values() for entry in given):
        found = Store(artifact.store.url).get(entry["artifact"])
        if found and found.kind == "Candidate":
            for batch in found.batches(["id", "prompt_id"]):
                told.update(zip(batch["id"].to_pylist(), batch["prompt_id"].to_pylist(), strict=True))
    return {answer: prompt for answer, prompt in told.items() if prompt}


def _measured(stage: str, a: Artifact, b: Artifact) -> Iterator[MetricPair]:
    first, second = measurements(a), measurements(b)
    for model, metric in first:
        if (model, metric) in second:
            one, other = first[model, metric], second[model, metric]
            told = difference(one, other, stage, model, metric)
            yield MetricPair(stage, model, metric, _mean(one), _mean(other), told)
    if not all("table.json" in artifact.manifest["files"] for artifact in (a, b)):
        return
    tables = a.read_json("table.json"), b.read_json("table.json")
    unmoved = same_answers(first, second)
    for model in tables[0]:
        for metric, value in tables[0][model].items():
            other = tables[1].get(model, {}).get(metric)
            if metric.endswith(("_low", "_high")) or (model, metric) in first or not _numbers(value, other):
                continue
            if model in unmoved:
                if value != other:
                    yield MetricPair(stage, model, metric, value, other, None, same_answers=True)
                continue
            yield MetricPair(stage, model, metric, value, other, _of_tables(tables[0][model], tables[1][model], metric))


def same_answers(*measured: Mapping[tuple[str, str], Any]) -> set[str]:
    """The models of which the same was measured, answer by answer: what tables tell of them otherwise is about others.

    Args:
        measured: as `measurements` has it, of two stages or more.
    """
    told = [{model: {k: v for k, v in one.items() if k[0] == model} for model, _ in one} for one in measured]
    return {model for model, values in told[0].items() if all(other.get(model) == values for other in told[1:])}


def _of_tables(first: dict[str, Any], second: dict[str, Any], metric: str) -> Difference | None:
    """From two intervals, as if they were of samples that have nothing to do with each other: on the same prompts that is too wide."""
    ends = [row.get(f"{metric}_{end}") for row in (first, second) for end in ("low", "high")]
    if not _numbers(*ends):
        return None
    (a_low, a_high, b_low, b_high), a, b = ends, first[metric], second[metric]
    below, above = math.hypot(b - b_low, a_high - a), math.hypot(b_high - b, a - a_low)
    return Difference(b - a, b - a - below, b - a + above, int(first.get("n") or 0) + int(second.get("n") or 0), False)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _mean(values: dict[str, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None


def _learnt(stage: str, a: Artifact, b: Artifact) -> Iterator[CurvePair]:
    first, second = a.metrics(), b.metrics()
    if first is None or second is None:
        return
    for name in first.columns:
        if name != "step" and name in second.columns:
            yield CurvePair(stage, name, _points(first, name), _points(second, name))


def _points(metrics: pl.DataFrame, name: str) -> list[tuple[int, float]]:
    return [(int(step), float(value)) for step, value in metrics.select("step", name).drop_nulls().iter_rows()]


# -- which rows are other ------------------------------------------------------------------------------------------------


def _changed(stage: str, a: Artifact, b: Artifact, examples: int) -> Changed | None:
    if a.kind not in DATASETS or a.kind != b.kind or a.kind in ("TokenBlock", "Verdict"):
        return None
    ids = [_said_by_id(artifact) for artifact in (a, b)]
    there = ids[0].join(ids[1], on="id", how="inner")
    other_now = set(there.filter(pl.col("said") != pl.col("said_right"))["id"].to_list())
    only = [set(ids[0].join(ids[1], on="id", how="anti")["id"]), set(ids[1].join(ids[0], on="id", how="anti")["id"])]
    same = len(there) - len(other_now)
    first, second = (_keyed(artifact, gone | other_now) for artifact, gone in zip((a, b), only, strict=True))
    matched = [key for key in first if key in second]
    other = [key for key in matched if first[key][1] != second[key][1]]
    shown = [(first[key][0], first[key][1], second[key][1]) for key in other[:examples]]
    if not matched:  # nothing belongs to each other: some of either
        shown = [("", text, "") for _, text in list(first.values())[:examples]]
        shown += [("", "", text) for _, text in list(second.values())[:examples]]
    counts = [len(gone) + len(other_now) for gone in only]
    return Changed(stage, same, counts[0], counts[1], len(matched), len(other), shown)


def _said_by_id(artifact: Artifact) -> pl.DataFrame:
    """`id` of every row and a digest of what it says, a batch at a time."""
    tables = [pl.DataFrame({"id": [], "said": []}, schema={"id": pl.String, "said": pl.UInt64})]
    for batch in artifact.batches():
        rows = pl.DataFrame(pl.from_arrow(batch))
        said = [name for name in CONTENT if name in rows.columns]
        tables.append(rows.select("id", said=rows.select(said).hash_rows(seed=0)))
    return pl.concat(tables).unique("id", keep="first", maintain_order=True)


def _keyed(artifact: Artifact, ids: set[str]) -> dict[tuple[Any, ...], tuple[str, str]]:
    """What tells which rows belong to each other -> (what was asked, what the row says)."""
    told: dict[tuple[Any, ...], tuple[str, str]] = {}
    for batch in artifact.batches():
        names = [name for name in SAID if name in batch.schema.names]
        for row in batch.to_pylist():
            if row["id"] in ids:
                key = tuple(row[name] for name in names) if names else (row["id"],)
                told[(*key, 0) if (*key, 0) not in told else (*key, row["id"])] = (turns(row.get("prompt")), _text(row))
    return told


def _text(row: dict[str, Any]) -> str:
    """What a row says, apart from what was asked."""
    if "chosen" in row:
        return f"{_said(row['chosen'])} over {_said(row['rejected'])}"
    if "ranks" in row:
        return f"ranks {row['ranks']}"
    for name in ("completion", "messages", "text", "prompt"):
        if row.get(name):
            return row[name] if isinstance(row[name], str) else _said(row[name])
    return ""


def _said(messages: list[dict[str, str]] | None) -> str:
    return turns(messages).removeprefix("assistant: ")
