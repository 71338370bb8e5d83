"""Whose answers annotators prefer, where the answers to one prompt come from several stages; and who the annotators are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval
from engine.store.artifact import Artifact
from engine.view.report.flow import Stop

MOST = 200_000  # rankings that are counted here


@dataclass(frozen=True)
class Preferred:
    """How often answers of one stage are ranked above those of another, a tie counting half, with its 95 % interval over prompts.

    Attributes:
        comparisons: of two answers by one annotator.
    """

    better: str
    worse: str
    share: Interval
    comparisons: int
    prompts: int


def preferred(stop: Stop, stops: Sequence[Stop]) -> list[Preferred]:
    """Every two stages whose answers a stage of rankings held against each other, the one that wins more often first."""
    artifact = stop.artifact
    sources = [one for one in stops if one.name in stop.inputs and one.artifact and one.artifact.kind == "Candidate"]
    if artifact is None or artifact.kind != "Ranking" or artifact.rows > MOST or len(sources) < 2:
        return []
    stage_of = {
        id: one.name for one in sources if one.artifact for id in one.artifact.to_table(["id"])["id"].to_pylist()
    }
    won: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in artifact.to_table(["prompt_id", "candidates", "ranks"]).to_pylist():
        known = [
            (stage_of[id], rank)
            for id, rank in zip(row["candidates"], row["ranks"], strict=True)
            if id in stage_of and rank is not None
        ]
        for (one, rank), (other, below) in combinations(known, 2):
            if one != other:
                outcome = 0.5 if rank == below else float(rank < below)
                pair, outcome = ((one, other), outcome) if one < other else ((other, one), 1 - outcome)
                won.setdefault(pair, []).append((row["prompt_id"], outcome))
    return [_told(pair, outcomes, artifact) for pair, outcomes in sorted(won.items())]


def _told(pair: tuple[str, str], outcomes: list[tuple[str, float]], artifact: Artifact) -> Preferred:
    prompts = [prompt for prompt, _ in outcomes]
    share = bootstrap.mean([value for _, value in outcomes], prompts, artifact.manifest["seed"] or 0, *pair)
    first, second = pair
    if share.value < 0.5:
        first, second, share = second, first, Interval(1 - share.value, 1 - share.high, 1 - share.low)
    return Preferred(first, second, share, len(outcomes), len(set(prompts)))


def annotators_of(rankings: Sequence[Artifact]) -> dict[str, Counter[str]]:
    """Kind of annotator (`person`, `scripted`, `judge`) -> name -> rankings."""
    found: dict[str, Counter[str]] = {}
    for artifact in rankings:
        rows: list[dict[str, Any]] = artifact.to_table(["annotator", "annotator_kind"]).to_pylist()
        for row in rows:
            found.setdefault(row["annotator_kind"] or "person", Counter())[row["annotator"]] += 1
    return found
