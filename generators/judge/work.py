"""The work of `judge`."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import polars as pl
import pyarrow as pa

from engine.errors import UserError, nearest
from engine.stage.job import Job, Part
from engine.stage.slices import Slice
from engine.store.schema import row_id
from generators.backends.open import open_backend
from generators.backends.protocol import Sampling
from generators.judge import model_judge
from generators.judge.stage import Judge
from generators.rules.answer_columns import readable
from generators.rules.rule import PythonRule, Rule, TestsRule
from generators.rules.verify import values, verify

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
    own = stage.templates(job.base)
    backend, name = open_backend(job, stage.server, replicas=stage.replicas, dtype="auto")
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


def _check_against(job: Job, model: str) -> None:
    models = {name for artifact in job.all("candidates") for name in artifact.to_table(["model"])["model"].to_pylist()}
    if model not in models:
        raise UserError(
            f"`against: {model}` made none of the candidates.{nearest(model, models)} Models: {', '.join(sorted(models))}."
        )


def _by_rules(stage: Judge, job: Job) -> None:
    # Programs run on all cores as it is, and against the clock: more of them at once would not be done in time.
    programs = "code" in stage.verifiers or any(isinstance(rule, TestsRule) for rule in stage.rules.values())
    done, rows = 0, job.rows("candidates")
    for judged in job.spread(Ruler, job.slices("candidates"), stage, width=1 if programs else None):
        done += judged
        job.progress(done, rows, "rows")


class Ruler:
    """Judges slices of the candidates by rules and verifiers; gives their numbers of rows."""

    def __init__(self, job: Job, stage: Judge) -> None:
        self.job, self.stage = job, stage

    def __call__(self, piece: Slice) -> int:
        if part := self.job.part(piece):
            self._judge(part)
        return piece.rows

    def _judge(self, part: Part) -> None:
        stage, weaker = self.stage, self.stage.sandbox == "weaker"
        frame = pl.DataFrame(part.table)
        seen = readable(frame)
        said, known = (seen[name].to_list() for name in ("completion", "reference"))
        measured = {name: values(rule, seen, name, self.job.base) for name, rule in stage.rules.items()}
        verified = [
            pl.Series(kind, verify(kind, [text or "" for text in said], known, weaker), pl.Float64)
            for kind in stage.verifiers
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
        faults = {name: one.faults for name, one in measured.items() if one.faults}
        part.commit(kept, _without(stage, part.table, seen, set(verdicts["subject"]), faults))


def _told(stage: Judge, metric: str) -> str:
    """The rule of a metric, as part of the ids of its verdicts."""
    rule = stage.rules.get(metric, "verifier")
    return rule if isinstance(rule, str) else rule.model_dump_json(exclude={"sandbox"})


def _without(
    stage: Judge, candidates: pa.Table, seen: pl.DataFrame, judged: set[str], faults: dict[str, dict[int, str]]
) -> pa.Table | None:
    """The candidates that a rule failed on, and those that none gives a value, with what is null about them.

    Args:
        judged: ids of those with a value.
        faults: metric -> row -> what went wrong.
    """
    used = {name for name in seen.columns if any(_uses(rule, name) for rule in stage.rules.values())}
    used |= {"reference"} if stage.verifiers else set()
    metrics = ", ".join(f"`{name}`" for name in [*stage.rules, *stage.verifiers])
    rejected = list[dict[str, Any]]()
    for place, row in enumerate(candidates.select(LOST).to_pylist()):
        failed = {metric: told[place] for metric, told in faults.items() if place in told}
        for metric, detail in failed.items():
            own = {"id": row_id("Verdict", "rules", row["id"], metric), "parents": [row["id"]], "subject": row["id"]}
            rejected.append({**row, **own, "metric": metric, "reason": "rule_failed", "detail": detail, "failed": True})
        if row["id"] not in judged and not failed:
            null = [f"`{name}` is null{WHY.get(name, '')}" for name in sorted(used) if seen[name][place] is None]
            detail = f"{metrics} gives it no value" + (f": {', '.join(null)}" if null else "")
            own = {"subject": row["id"], "metric": None, "reason": "no_verdict", "detail": detail, "failed": False}
            rejected.append({**row, **own})
    return pa.Table.from_pylist(rejected) if rejected else None


def _uses(rule: Rule, name: str) -> bool:
    """Whether a rule goes by a column; of a function of one's own that is not known."""
    if isinstance(rule, str):
        return re.search(rf"\b{name}\b", rule, re.I) is not None
    return name == "reference" and not isinstance(rule, PythonRule) and rule.compares
