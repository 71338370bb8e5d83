"""The work of `judge`."""

from __future__ import annotations

import contextlib

import polars as pl
import pyarrow as pa

from engine.errors import UserError, nearest
from engine.stage.job import Job
from engine.store.schema import row_id
from generators.backends.open import open_backend
from generators.backends.protocol import Sampling
from generators.judge import model_judge
from generators.judge.stage import Judge
from generators.rules.answer_columns import readable
from generators.rules.verify import values, verify


def judge(stage: Judge, job: Job) -> None:
    """Commit verdicts by rules and verifiers, then those of a model."""
    if stage.rules or stage.verifiers:
        _by_rules(stage, job)
    if not (stage.pairwise or stage.rubric):
        return
    own = stage.templates(job.base)
    backend, name = open_backend(job, stage.server, dtype="auto")
    sampling = Sampling(stage.temperature, max_tokens=stage.max_tokens, logprobs=False)
    with contextlib.closing(backend):
        if stage.pairwise:
            if stage.against is not None:
                _check_against(job, stage.against)
            how = model_judge.Comparison(stage.criteria, stage.principles, stage.graded, stage.against)
            model_judge.compare(job, backend, name, sampling, how, stage.partition, own)
        if stage.rubric:
            aspects = model_judge.ASPECTS if stage.rubric is True else stage.rubric
            model_judge.rate(job, backend, name, sampling, aspects, stage.partition, own)
    job.summary(**model_judge.report(job, stage.against))


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
        measured = {name: values(rule, seen, name, job.base) for name, rule in stage.rules.items()}
        verified = [
            pl.Series(kind, verify(kind, [text or "" for text in said], known), pl.Float64) for kind in stage.verifiers
        ]
        scores = pl.concat(
            [
                frame.select("id", "model"),
                pl.DataFrame([one.values for one in measured.values()]),
                pl.DataFrame(verified),
            ],
            how="horizontal",
        )
        verdicts = (
            scores.rename({"id": "subject"})
            .unpivot(on=[*stage.rules, *stage.verifiers], index=["subject", "model"], variable_name="metric")
            .drop_nulls("value")
        )
        ids = [row_id("Verdict", "rules", s, m, _told(stage, m)) for s, m in verdicts["subject", "metric"].iter_rows()]
        kept = verdicts.with_columns(
            pl.Series("id", ids, pl.String), pl.concat_list("subject").alias("parents")
        ).to_arrow()
        failed = [
            {"id": row_id("Verdict", "rules", frame["id"][row], name), "parents": [frame["id"][row]], "subject": frame["id"][row],
             "metric": name, "reason": "rule_failed", "detail": told, "failed": True}
            for name, one in measured.items() for row, told in sorted(one.faults.items())
        ]  # fmt: skip
        part.commit(kept, pa.Table.from_pylist(failed) if failed else None)


def _told(stage: Judge, metric: str) -> str:
    """The rule of a metric, as part of the ids of its verdicts."""
    rule = stage.rules.get(metric, "verifier")
    return rule if isinstance(rule, str) else rule.model_dump_json()
