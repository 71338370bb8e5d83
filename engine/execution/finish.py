"""The end of a job: what was committed becomes an artifact. The manifest is written last."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import Any

import pyarrow as pa

from engine.errors import StageFailed
from engine.redaction import redacted_bytes
from engine.stage.job import SUMMARY, Job
from engine.store import request_counts, schema
from engine.store.artifact import Artifact
from engine.store.parquet import encode
from engine.store.writer import Contents
from engine.view.card import card
from engine.view.rows import shorten


def finish(
    job: Job, facts: dict[str, Any], max_failed: float, timings: dict[str, Any], sent: dict[str, int]
) -> Artifact:
    """Gather what was committed and write the manifest, last.

    Args:
        facts: what made this artifact (key, stage, inputs, seed, packages).
        max_failed: the ceiling on failed rows, as a share of all rows seen.
        sent: requests to a store elsewhere, by verb, before this job began.

    Raises:
        StageFailed: no row came out, or too many failed.
    """
    _keep_metrics(job)
    job.writer.put_files(job.output)
    made = job.contents()
    summary = json.loads(job.writer.read_file(SUMMARY)) if SUMMARY in made.files else {}
    _check(job, made, max_failed, summary)
    if requests := request_counts.total(request_counts.since(sent), *(one.requests for one in job.efforts)):
        timings["requests"] = requests  # up to here
    manifest = {
        **facts,
        "kind": "dataset" if job.gives in schema.DATASETS else "model",
        "schema": job.gives,
        "rows": made.rows,
        "rejected": dict(sorted(made.reasons.items())),
        "failed": made.failed,
        "files": made.files,
        "digest": made.digest,
        "summary": summary,
        "timings": {**timings, "spent": job.spent} if job.spent else timings,
    }
    log = job.scratch / "stage.log"
    if log.exists():
        job.write_log("stage.log", redacted_bytes(log.read_bytes()))
    artifact = job.writer.seal(
        manifest, card(job.store, job.artifact, manifest) if job.gives in schema.MODELS else None
    )
    job.exchange.clear()
    shutil.rmtree(job.scratch, ignore_errors=True)
    return artifact


def _check(job: Job, made: Contents, max_failed: float, summary: dict[str, Any]) -> None:
    """
    Raises:
        StageFailed: no row came out, or too many failed.
    """
    came_in = sum(a.rows for given in job.inputs.values() for a in given.values() if a.kind in schema.DATASETS)
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in made.reasons.most_common())
    where = f"The rows are in {job.writer.rejected_place()}."
    if job.gives in schema.DATASETS and not made.rows:
        if not reasons:
            nothing = f"{came_in:,} rows came in, and nothing was made of them" if came_in else "nothing came in"
            raise StageFailed(f"no row came out: {nothing}.")
        raise StageFailed(" ".join([f"no row came out: {reasons}.", *_particulars(job, made, summary), where]))
    # A model has no rows of its own: what failed did so among what came in.
    seen = made.rows + made.rejected if job.gives in schema.DATASETS else max(came_in, made.rejected)
    if made.failed > max_failed * seen:
        failed = f"{made.failed:,} of {seen:,} rows failed, more than the ceiling of {max_failed:.0%} (`max_failed`): {reasons}."
        raise StageFailed(" ".join([failed, *_particulars(job, made, summary), where]))


def _particulars(job: Job, made: Contents, summary: dict[str, Any]) -> list[str]:
    """The detail of the first row with the most frequent reason, and what the stage itself says of what is missing."""
    reason = made.reasons.most_common(1)[0][0]
    told = list[str]()
    for name in sorted(job.writer.rejected_parts()):
        rejected = job.writer.read_rejected(name, ["reason", "detail"]).to_pylist()
        if detail := next((row["detail"] for row in rejected if row["reason"] == reason and row["detail"]), None):
            told.append(f"The first {reason}: {shorten(detail, 200)}.")
            break
    return [*told, *([summary["shortfall"]] if "shortfall" in summary else [])]


def _keep_metrics(job: Job) -> None:
    """Turn the metrics that were reported into `logs/metrics.parquet`, one row a step."""
    reported = job.scratch / "metrics.jsonl"
    if not reported.exists():
        return
    steps: dict[int, dict[str, float]] = {}
    for line in reported.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut short by a kill, or damaged
            point = {name: value for name, value in json.loads(line).items() if isinstance(value, int | float)}
            steps.setdefault(int(point["step"]), {}).update(point)
    names = sorted({name for point in steps.values() for name in point} - {"step"})
    ordered = [steps[step] for step in sorted(steps)]
    table = pa.table({
        "step": pa.array([point["step"] for point in ordered], pa.int64()),
        **{name: pa.array([point.get(name) for point in ordered], pa.float64()) for name in names},
    })  # fmt: skip
    job.write_log("metrics.parquet", encode(table))
