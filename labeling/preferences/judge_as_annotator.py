"""The work of `ai_feedback`: verdicts in, rankings out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from engine.errors import UserError
from engine.stage.job import Job, part_name
from engine.store.schema import DATASETS, row_id
from labeling.preferences.ai_feedback_stage import AiFeedback

Row = dict[str, Any]


def rank_by_verdicts(stage: AiFeedback, job: Job) -> None:
    """
    Raises:
        UserError: no verdict has one of the stage's metrics, or one is about a candidate that is not there.
    """
    columns = ["id", "prompt_id", "prompt", "completion"]
    candidates = {row["id"]: row for a in job.all("candidates") for row in a.to_table(columns).to_pylist()}
    verdicts = [v for a in job.all("verdicts") for v in a.to_table().to_pylist() if v["metric"] in stage.metrics]
    if not verdicts:
        known = sorted({v["metric"] for a in job.all("verdicts") for v in a.to_table(["metric"]).to_pylist()})
        raise UserError(f"no verdict has a metric of {list(stage.metrics)}; there are {known}.")
    if unknown := [v["subject"] for v in verdicts if not {v["subject"], *v["parents"]} <= candidates.keys()]:
        raise UserError(
            f"{len(unknown)} verdicts are about candidates that are not among `candidates`, {unknown[0]} among them."
        )
    rankings = [*_of_pairs(candidates, verdicts, stage.annotator), *_of_scores(candidates, verdicts, stage.annotator)]
    judged = {row["prompt_id"] for row in rankings}
    silent = sorted({row["prompt_id"] for row in candidates.values()} - judged)
    job.summary(prompts=len(judged), judges=sorted({row["annotator"] for row in rankings}))
    job.commit(
        part_name(0, sorted(candidates)),
        pa.Table.from_pylist(sorted(rankings, key=lambda row: (row["prompt_id"], row["id"])), DATASETS["Ranking"]),
        pa.table({"id": silent, "reason": ["not_judged"] * len(silent)}) if silent else None,
        consumed=len(candidates),
    )


def _of_pairs(candidates: dict[str, Row], verdicts: Sequence[Row], annotator: str | None) -> Iterator[Row]:
    """A ranking of two from every verdict on a pair, whose value is 1 where the first is better, 0.5 for a tie."""
    for verdict in sorted((v for v in verdicts if len(v["parents"]) == 2), key=lambda v: v["id"]):
        first, second = verdict["parents"]
        ranks = (1, 1) if verdict["value"] == 0.5 else (1, 2) if verdict["value"] > 0.5 else (2, 1)
        yield _ranking([candidates[first], candidates[second]], ranks, annotator or _judge(verdict), [verdict["id"]])


def _of_scores(candidates: dict[str, Row], verdicts: Sequence[Row], annotator: str | None) -> Iterator[Row]:
    """A ranking of all answers to a prompt that one judge gave a value, by the sum of their values."""
    total: dict[tuple[str, str], dict[str, float]] = {}
    sources: dict[tuple[str, str], list[str]] = {}
    for verdict in (v for v in verdicts if len(v["parents"]) < 2):
        about = annotator or _judge(verdict), candidates[verdict["subject"]]["prompt_id"]
        values = total.setdefault(about, {})
        values[verdict["subject"]] = values.get(verdict["subject"], 0.0) + verdict["value"]
        sources.setdefault(about, []).append(verdict["id"])
    for (judge, prompt_id), values in sorted(total.items()):
        if len(values) > 1:
            ids = sorted(values)
            ranks = [1 + sum(round(v - values[i], 9) > 0 for v in values.values()) for i in ids]
            yield _ranking([candidates[i] for i in ids], ranks, judge, sources[judge, prompt_id])


def _judge(verdict: Row) -> str:
    try:
        return str(json.loads(verdict["text"] or "{}").get("judge") or "judge")
    except (ValueError, AttributeError):  # a text that is no JSON object: somebody else's verdicts
        return "judge"


def _ranking(candidates: Sequence[Row], ranks: Sequence[int], judge: str, sources: Sequence[str]) -> Row:
    ids = [row["id"] for row in candidates]
    return {
        "id": row_id("Ranking", judge, *ids, json.dumps(list(ranks)), *sorted(sources)),
        "parents": [*ids, *sorted(sources)],
        "prompt_id": candidates[0]["prompt_id"],
        "prompt": candidates[0]["prompt"],
        "candidates": ids,
        "completions": [row["completion"][-1]["content"] for row in candidates],
        "ranks": list(ranks),
        "shown": None,
        "annotator": judge,
        "annotator_kind": "judge",
        "correction": None,
        "flags": [],
    }
