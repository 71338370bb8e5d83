"""What annotators judged unlike the others, and which answers stand behind a number of an evaluation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import polars as pl

from engine.stage.drawing import Intervals
from engine.stage.stage import Stage
from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.view.lineage import inputs_of, rows_by_id
from engine.view.rows import turns


@dataclass(frozen=True)
class UnlikeOthers:
    """One ranking, and on how many pairs of its answers its annotator stands against most of the others.

    Attributes:
        place: of the row in its artifact.
        others: annotator -> ranks of the same answers.
    """

    place: int
    prompt: str
    answers: list[str]
    ranks: list[int | None]
    others: dict[str, list[int | None]]
    against: int
    pairs: int


def annotators(rankings: Artifact) -> dict[str, int]:
    """Annotator -> rankings."""
    names = pl.concat(
        [
            pl.Series(rankings.read_table(part, ["annotator"])["annotator"].to_pylist(), dtype=pl.String)
            for part in rankings.parts()
        ]
    )
    return dict(names.value_counts(sort=True, name="rankings").sort("rankings", descending=True).iter_rows())


def unlike_others(rankings: Artifact, annotator: str) -> list[UnlikeOthers]:
    """An annotator's rankings that others ranked, too; those where they stand most alone first."""
    columns = ["prompt_id", "prompt", "candidates", "completions", "ranks", "annotator"]
    rows = rankings.to_table(columns).to_pylist()
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt_id"]].append(row)
    found: list[UnlikeOthers] = []
    for place, row in enumerate(rows):
        if row["annotator"] != annotator:
            continue
        others: dict[str, list[int | None]] = {}
        for other in by_prompt[row["prompt_id"]]:
            if other["annotator"] != annotator:
                ranks = dict(zip(other["candidates"], other["ranks"], strict=True))
                others[other["annotator"]] = [ranks.get(one) for one in row["candidates"]]
        sides = {name: _sides(ranks) for name, ranks in others.items()}
        against = pairs = 0
        for number, own in enumerate(_sides(row["ranks"])):
            majority = sum(side[number] for side in sides.values())
            pairs += bool(own and majority)
            against += own * majority < 0
        if others:
            found.append(
                UnlikeOthers(place, turns(row["prompt"]), row["completions"], row["ranks"], others, against, pairs)
            )
    return sorted(found, key=lambda one: (-one.against, one.place))


def _sides(ranks: list[int | None]) -> list[int]:
    """For every two answers: 1 the first is better, -1 the second, 0 neither; an answer without a rank is below those that have one."""
    known = [10**9 if rank is None else rank for rank in ranks]
    return [(b > a) - (b < a) for a, b in combinations(known, 2)]


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt. `value` and `other_value` are what was measured of them; `outcome` is the first one's, `subject` the prompt's id."""

    prompt: str
    reference: str | None
    answer: str
    other: str
    value: float | None
    other_value: float | None
    outcome: str
    swapped: bool = False
    subject: str = ""


@dataclass(frozen=True)
class MeasuredAnswer:
    prompt: str
    reference: str | None
    sample: int
    answer: str
    value: float


def behind(stage: type[Stage], artifact: Artifact, column: str) -> tuple[str, bool] | None:
    """What single answers were measured by that a number of a table was made of, and whether it compares them with the reference's; None
    where nothing is known."""
    for drawing in stage.drawings:
        if isinstance(drawing, Intervals) and drawing.metric == column and drawing.made_of:
            return drawing.made_of, True
    return (column, False) if column in _metrics(artifact) else None


def _metrics(artifact: Artifact) -> set[str]:
    return {
        name for part in artifact.parts() for name in set(artifact.read_table(part, ["metric"])["metric"].to_pylist())
    }


def answers_to(verdicts: Artifact, model: str, metric: str) -> dict[str, list[tuple[str, float | None]]]:
    """Prompt's id -> (answer, its value by the metric) of each of a model's answers, in the order of the samples."""
    rows = verdicts.to_polars().filter(pl.col("model") == model)
    order = "sample" if "sample" in rows.columns else "id"
    texts = rows.filter(pl.col("metric") == "sample").select("subject", order, "text")
    values = rows.filter(pl.col("metric") == metric).select("subject", order, "value")
    both = texts.join(values, on=["subject", order], how="left").sort("subject", order)
    found: dict[str, list[tuple[str, float | None]]] = defaultdict(list)
    for subject, text, value in both.select("subject", "text", "value").iter_rows():
        found[subject].append((text or "", value))
    return dict(found)


def compared(verdicts: Artifact, model: str, other: str, metric: str, blind: bool = False) -> list[AnswerPair]:
    """Answers of two models to the same prompts side by side, sample by sample: each sample of a prompt has one seed for all models.

    Args:
        blind: which of them stands first is drawn by the prompt; `swapped` tells it.
    """
    ours, theirs = answers_to(verdicts, model, metric), answers_to(verdicts, other, metric)
    asked = questions(verdicts, set(ours) & set(theirs))
    pairs: list[AnswerPair] = []
    for subject in sorted(ours.keys() & theirs.keys()):
        prompt, reference = asked.get(subject, (subject, None))
        for (text, value), (other_text, other_value) in zip(ours[subject], theirs[subject], strict=False):
            told = None if value is None or other_value is None else value - other_value
            outcome = "" if told is None else "won" if told > 0 else "lost" if told < 0 else "tied"
            if blind and hashlib.sha256(f"{subject}{text}".encode()).digest()[0] % 2:
                pairs.append(
                    AnswerPair(
                        prompt, reference, other_text, text, other_value, value, outcome, swapped=True, subject=subject
                    )
                )
            else:
                pairs.append(
                    AnswerPair(prompt, reference, text, other_text, value, other_value, outcome, subject=subject)
                )
    return pairs


def measured(verdicts: Artifact, model: str, metric: str) -> list[MeasuredAnswer]:
    """A model's answers with their values, the least first."""
    answers = answers_to(verdicts, model, metric)
    asked = questions(verdicts, set(answers))
    found = [
        MeasuredAnswer(*asked.get(subject, (subject, None)), number, text, value)
        for subject, own in answers.items()
        for number, (text, value) in enumerate(own)
        if value is not None
    ]
    return sorted(found, key=lambda one: one.value)


def questions(verdicts: Artifact, ids: set[str]) -> dict[str, tuple[str, str | None]]:
    """Prompt and known answer of these rows, looked for in what the verdicts were made from."""
    found: dict[str, tuple[str, str | None]] = {}
    for name in dict.fromkeys(inputs_of(verdicts)):
        source = read_artifact(verdicts.store, name)
        if source is None or source.kind not in DATASETS or not ids - found.keys():
            continue
        column = "prompt_id" if source.kind == "Candidate" else "id"
        rows = (
            rows_by_id(source, ids)
            if column == "id"
            else {r["prompt_id"]: r for r in source.to_table(["prompt_id", "prompt", "reference"]).to_pylist()}
        )
        for identity, row in rows.items():
            found[identity] = (_question(row), row.get("reference"))
    return found


def _question(row: dict[str, Any]) -> str:
    """What was asked: a prompt, or a conversation up to its last answer."""
    said = row.get("prompt") or row.get("messages") or []
    while len(said) > 1 and said[-1]["role"] == "assistant":
        said = said[:-1]
    return turns(said) if said else row.get("text", "")
