"""The end of a job: what was committed becomes an artifact. The manifest is written last."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import Any

import pyarrow as pa

from engine.errors import StageFailed
from engine.stage.job import SUMMARY, Job
from engine.store import schema
from engine.store.artifact import Artifact
from engine.store.parquet import encode
from engine.view.card import card


def finish(job: Job, facts: dict[str, Any], max_failed: float, timings: dict[str, Any]) -> Artifact:
    """Gather what was committed and write the manifest, last.

    Args:
        facts: what made this artifact (key, stage, inputs, seed, packages).
        max_failed: the ceiling on failed rows, as a share of all rows seen.

    Raises:
        StageFailed: no row came out, or too many failed.
    """
    _keep_metrics(job)
    for file in sorted(p for p in job.output.rglob("*") if p.is_file()):
        job.writer.put_file(file, file.relative_to(job.output).as_posix())
    made = job.writer.contents()
    reasons = ", ".join(f"{reason} ({count})" for reason, count in made.reasons.most_common())
    where = job.writer.rejected_place()
    if job.gives in schema.DATASETS and not made.rows:
        raise StageFailed(
            f"no row came out: {reasons or 'nothing came in'}." + (f" The rows are in {where}." if reasons else "")
        )
    if made.failed > max_failed * (made.rows + made.rejected):
        raise StageFailed(
            f"{made.failed} of {made.rows + made.rejected} rows failed, more than the ceiling of {max_failed:.0%} "
            f"(`max_failed`): {reasons}. The rows are in {where}."
        )
    manifest = {
        **facts,
        "kind": "dataset" if job.gives in schema.DATASETS else "model",
        "schema": job.gives,
        "rows": made.rows,
        "rejected": dict(sorted(made.reasons.items())),
        "failed": made.failed,
        "files": made.files,
        "digest": made.digest,
        "summary": json.loads(job.writer.read_file(SUMMARY)) if SUMMARY in made.files else {},
        "timings": {**timings, "spent": job.spent} if job.spent else timings,
    }
    log = job.scratch / "stage.log"
    if log.exists():
        job.write_log("stage.log", log.read_bytes())
    artifact = job.writer.seal(
        manifest, card(job.store, job.artifact, manifest) if job.gives in schema.MODELS else None
    )
    shutil.rmtree(job.scratch, ignore_errors=True)
    return artifact


def _keep_metrics(job: Job) -> None:
    """Turn the metrics that were reported into `logs/metrics.parquet`, one row a step."""
    reported = job.scratch / "metrics.jsonl"
    if not reported.exists():
        return
    steps: dict[int, dict[str, float]] = {}
    for line in reported.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut short by a kill
            point = json.loads(line)
            steps.setdefault(point["step"], {}).update(point)
    names = sorted({name for point in steps.values() for name in point} - {"step"})
    ordered = [steps[step] for step in sorted(steps)]
    table = pa.table({
        "step": pa.array([point["step"] for point in ordered], pa.int64()),
        **{name: pa.array([point.get(name) for point in ordered], pa.float64()) for name in names},
    })  # fmt: skip
    job.write_log("metrics.parquet", encode(table))
