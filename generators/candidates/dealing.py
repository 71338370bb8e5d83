"""Prompts in partitions, and which samples of every prompt each of those who answer makes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import polars as pl

from engine.stage.job import Job, Part
from generators.backends.protocol import Answer, Failure
from generators.text.prompts import prompt_of
from generators.text.tools import Malformed, calls_of, tools_of

COUNTED = ("tokens_in", "tokens_out")


@dataclass(frozen=True)
class Share:
    """Which samples of every prompt one of those who answer makes.

    Attributes:
        model: the name that goes into the rows.
        place: among those who answer, from 0.
        answerers: how many those are.
    """

    model: str
    place: int
    samples: range
    temperatures: list[float]
    answerers: int

    def temperature(self, sample: int) -> float:
        return self.temperatures[sample // self.answerers % len(self.temperatures)]

    def part(self, part: Part) -> str:
        """The name of a partition of its rows."""
        return part.name if self.answerers == 1 else f"{part.name}-{self.place}"


@dataclass(frozen=True)
class PartitionAnswers:
    """A partition that was answered: prompts, those that could not be asked, and for each sample its seed and answer."""

    asked: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    seeds: list[int]
    answers: list[Answer | Failure]
    repaired: set[int]


def repeated_ids(job: Job) -> dict[str, int]:
    """Ids that several prompts have, with the position of the first of them."""
    first, repeated, position = dict[str, int](), dict[str, int](), 0
    for artifact in job.all("prompts"):
        for batch in artifact.batches(["id"]):
            for one in batch.column("id").to_pylist():
                if first.setdefault(one, position) != position:
                    repeated[one] = first[one]
                position += 1
    return repeated


def read_prompts(part: Part, size: int, repeated: dict[str, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The prompts of a partition (`id`, `prompt`, `reference`, `tools` where it has them), and those that can't be asked: their
    id was there before, or their tools are none.

    Args:
        size: prompts a partition.
        repeated: as `repeated_ids` gives it.
    """
    start = int(part.name.split("-")[0]) * size
    asked, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
    for position, row in enumerate(part.table.to_pylist(), start):
        messages, reference = prompt_of(row)
        prompt: dict[str, Any] = {"id": row["id"], "prompt": messages, "reference": reference}
        if row.get("tools"):
            prompt["tools"] = row["tools"]
        if repeated.get(row["id"], position) != position:
            detail = f"the prompt with this id was there before, at row {repeated[row['id']]}"
            rejected.append({**prompt, "reason": "duplicate_id", "detail": detail, "failed": True})
            continue
        try:
            tools_of(row.get("tools"))
            for message in messages:
                calls_of(message)
        except Malformed as error:
            rejected.append({**prompt, "reason": "tool_calls", "detail": str(error), "failed": True})
            continue
        asked.append(prompt)
    return asked, rejected


def totals(job: Job) -> dict[str, Any]:
    """Rows, tokens in and out and finish reasons over everything committed, and for each model."""
    columns = ["model", "finish_reason", *COUNTED]
    frames = [pl.DataFrame(job.read_part(name, columns)) for name in sorted(job.committed())]
    rows = pl.concat(frames) if frames else pl.DataFrame()
    if rows.is_empty():
        return {"delivered": 0}

    def count(some: pl.DataFrame) -> dict[str, Any]:
        finish = Counter[str](some["finish_reason"].to_list())
        sums = {name: int(some[name].sum()) for name in COUNTED}
        return {"delivered": len(some), **sums, "finish": dict(sorted(finish.items()))}

    models = sorted(rows["model"].unique().to_list())
    each = {model: count(rows.filter(pl.col("model") == model)) for model in models}
    return {**count(rows), "models": each}
