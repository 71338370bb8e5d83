"""The work of `judge`."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import polars as pl
import pyarrow as pa

from engine.errors import UserError, nearest
from engine.stage.job import Job
from engine.store.schema import row_id
from generators.backends.open import open_backend
from generators.backends.protocol import Sampling
from generators.judge import model_judge
from generators.judge.stage import Judge
from generators.rules.answer_columns import readable, score
from generators.rules.verify import verify

LOST = ["id", "parents", "prompt", "completion", "model"]
WHY = {"length": " (it counts `token_ids`, which this answer does not have)"}


def judge(stage: Judge, job: Job) -> None:
    """Commit verdicts by rules and verifiers, then those of a model."""
    if stage.rules or stage.verifiers:
        _by_rules(stage, job)
    if stage.pairwise or stage.rubric:
        _by_model(stage, job)
    facts = model_judge.report(job, stage.against)
    for metric, told in facts.get("scores", {}).items():
        if told["answers"] > 1 and told["least"] == told["most"]:
            job.say(f"`{metric}` is {told['most']:g} for all {told['answers']} answers: it does not tell them apart.")
    job.summary(**facts)


def _by_model(stage: Judge, job: Job) -> None:
    backend, name = open_backend(job, stage.server, dtype="auto")
    sampling = Sampling(stage.temperature, max_tokens=stage.max_tokens, logprobs=False)
    with contextlib.closing(backend):
        if stage.pairwise:
            if stage.against is not None:
                _check_against(job, stage.against)
            how = model_judge.Comparison(stage.criteria, stage.principles, stage.graded, stage.against)
            model_judge.compare(job, backend, name, sampling, how, stage.partition)
        if stage.rubric:
            aspects = model_judge.ASPECTS if stage.rubric is True else stage.rubric
            model_judge.rate(job, backend, name, sampling, aspects, stage.partition)


def _check_against(job: Job, model: str) -> None:
    models = {name for artifact in job.all("candidates") for name in artifact.to_table(["model"])["model"].to_pylist()}
    if model not in models:
        raise UserError(
            f"`against: {model}` made none of the candidates.{nearest(model, models)} Models: {', '.join(sorted(models))}."
        )


def _by_rules(stage: Judge, job: Job) -> None:
    for part in job.parts("candidates"):
        frame = pl.DataFrame(part.table)
        seen = readable(frame)
        said, known = (seen[name].to_list() for name in ("completion", "reference"))
        measured = [
            pl.Series(kind, verify(kind, [text or "" for text in said], known), pl.Float64) for kind in stage.verifiers
        ]
        scores = pl.concat(
            [frame.select("id", "model"), score(stage.rules, seen), pl.DataFrame(measured)], how="horizontal"
        )
        verdicts = (
            scores.rename({"id": "subject"})
            .unpivot(on=[*stage.rules, *stage.verifiers], index=["subject", "model"], variable_name="metric")
            .drop_nulls("value")
        )
        ids = [
            row_id("Verdict", "rules", s, m, stage.rules.get(m, "verifier"))
            for s, m in verdicts["subject", "metric"].iter_rows()
        ]
        part.commit(
            verdicts.with_columns(
                pl.Series("id", ids, pl.String), pl.concat_list("subject").alias("parents")
            ).to_arrow(),
            _without(stage, part.table, seen, set(verdicts["subject"])),
        )


def _without(stage: Judge, candidates: pa.Table, seen: pl.DataFrame, judged: set[str]) -> pa.Table | None:
    """The candidates that no rule and no verifier gives a value, and what is null about them."""
    used = {name for name in seen.columns for rule in stage.rules.values() if re.search(rf"\b{name}\b", rule, re.I)}
    used |= {"reference"} if stage.verifiers else set()
    rejected = list[dict[str, Any]]()
    for row, values in zip(candidates.select(LOST).to_pylist(), seen.iter_rows(named=True), strict=True):
        if row["id"] not in judged:
            null = [f"`{name}` is null{WHY.get(name, '')}" for name in sorted(used) if values[name] is None]
            metrics = ", ".join(f"`{name}`" for name in [*stage.rules, *stage.verifiers])
            detail = f"{metrics} gives it no value" + (f": {', '.join(null)}" if null else "")
            rejected.append({**row, "reason": "no_verdict", "detail": detail, "failed": False})
    return pa.Table.from_pylist(rejected) if rejected else None
