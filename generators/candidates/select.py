"""The work of `select`: what verdicts make of every candidate."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from engine import seeds
from engine.errors import UserError, nearest
from engine.stage.job import Job, Part
from engine.stage.slices import Slice
from engine.store.schema import DATASETS, row_id
from engine.store.schema import table as as_table
from generators.candidates.select_stage import Select

KEPT = "kept"


def select(stage: Select, job: Job) -> None:
    """Commit the candidates that are kept, and why the others are not."""
    chosen = _choose(stage, job, _values(stage, job))
    # What becomes of each row, for copies of a candidate, too.
    ids = pl.concat([pl.DataFrame(a.to_table(["id"])) for a in job.all("candidates")])
    told = ids.join(chosen, on="id", how="left", maintain_order="left")
    tasks = ((piece, told[piece.start : piece.start + piece.rows]) for piece in job.slices("candidates"))
    done = 0
    for seen in job.spread(Chooser, tasks, stage.give):
        done += seen
        job.progress(done, len(told), "rows")
    kept = chosen.filter(pl.col("why") == KEPT)
    job.summary(
        candidates=len(chosen),
        kept=len(kept),
        prompts=chosen["prompt_id"].n_unique(),
        prompts_kept=kept["prompt_id"].n_unique(),
        value={"all": _mean(chosen), "kept": _mean(kept)},
    )


class Chooser:
    """Commits slices of the candidates; gives their numbers of rows.

    Args:
        give: "candidates" or "conversations".
    """

    def __init__(self, job: Job, give: str) -> None:
        self.job, self.give = job, give

    def __call__(self, task: tuple[Slice, pl.DataFrame]) -> int:
        """
        Args:
            task: a slice, and what becomes of its rows (`_choose`).
        """
        piece, told = task
        if part := self.job.part(piece):
            self._commit(part, told)
        return piece.rows

    def _commit(self, part: Part, told: pl.DataFrame) -> None:
        kept = pa.array((told["why"] == KEPT).to_list())
        table = part.table.filter(kept).append_column("value", told.filter(pl.col("why") == KEPT)["value"].to_arrow())
        lost = told.filter(pl.col("why") != KEPT)
        rejected = part.table.select(["id", "parents", "prompt", "completion", "model"]).filter(
            pa.compute.invert(kept)  # pyright: ignore
        )
        rejected = rejected.append_column("reason", lost["why"].to_arrow().cast(pa.string()))
        rejected = rejected.append_column("detail", lost["detail"].to_arrow().cast(pa.string()))
        rejected = rejected.append_column("failed", (lost["why"] == "no_verdict").to_arrow())
        part.commit(conversations(table) if self.give == "conversations" else table, rejected)


def _values(stage: Select, job: Job) -> pl.DataFrame:
    """What each subject is worth: the mean over its verdicts, or their weighted sum over metrics.

    Raises:
        UserError: it is not clear which metric counts, or there is no such metric.
    """
    columns = ["subject", "metric", "value"]
    verdicts = pl.concat([pl.DataFrame(a.to_table(columns)) for a in job.all("verdicts")])
    verdicts = verdicts.filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan())
    known = sorted(verdicts["metric"].unique().to_list())
    if not stage.weights and stage.metric is None and len(known) != 1:
        raise UserError(f"which metric counts? Set `metric` or `weights`; the verdicts have {', '.join(known)}.")
    weights = stage.weights or {stage.metric or known[0]: 1.0}
    for name in weights:
        if name not in known:
            raise UserError(
                f"no verdict measures `{name}`.{nearest(name, known)} The verdicts have {', '.join(known)}."
            )
    means = verdicts.group_by("subject", "metric").agg(pl.col("value").mean())
    weighed = means.join(pl.DataFrame({"metric": list(weights), "weight": list(weights.values())}), on="metric")
    return (
        weighed.group_by("subject")
        .agg((pl.col("value") * pl.col("weight")).sum().alias("value"), pl.len().alias("measured"))
        .filter(pl.col("measured") == len(weights))
        .select("subject", "value")
    )


def _choose(stage: Select, job: Job, values: pl.DataFrame) -> pl.DataFrame:
    """Every candidate with its value, and why it is kept or not."""
    columns = ["id", "prompt_id", "sample"]
    rows = pl.concat([pl.DataFrame(a.to_table(columns)) for a in job.all("candidates")]).unique(
        "id", keep="first", maintain_order=True
    )
    rows = rows.join(values, left_on="id", right_on="subject", how="left", maintain_order="left")
    why = pl.when(pl.col("value").is_null()).then(pl.lit("no_verdict")).otherwise(pl.lit(KEPT))
    rows = rows.with_columns(why.alias("why"))
    if not (rows["why"] == KEPT).any():
        raise UserError("no candidate has a verdict: are these the verdicts of these candidates?")
    if stage.at_least is not None:
        rows = _drop(rows, pl.col("value") < stage.at_least, "below")
    if stage.beta is not None:
        draws = [seeds.derive(job.seed, "select", one) / 2**63 for one in rows["id"]]
        short = (pl.col("value") - pl.col("value").max().over("prompt_id")) / stage.beta
        rows = rows.with_columns(pl.Series("draw", np.log(np.maximum(draws, 1e-300))))
        rows = _drop(rows, pl.col("draw") >= short, "not_drawn").drop("draw")
    if stage.best is not None:
        standing = pl.when(pl.col("why") == KEPT).then(-pl.col("value"))
        # Of equal answers the earlier: an order that nobody's taste had a part in.
        place = pl.struct(standing, "sample", "id").rank("ordinal").over("prompt_id", "why")
        rows = _drop(rows, place > stage.best, "not_best")
    return rows.with_columns(pl.format("its value is {}", pl.col("value").round(6)).alias("detail"))


def _drop(rows: pl.DataFrame, where: pl.Expr, why: str) -> pl.DataFrame:
    kept = pl.col("why") == KEPT
    return rows.with_columns(pl.when(kept & where).then(pl.lit(why)).otherwise(pl.col("why")).alias("why"))


def _mean(rows: pl.DataFrame) -> float | None:
    mean = rows["value"].drop_nulls().mean()
    return round(float(mean), 6) if isinstance(mean, int | float) else None


def conversations(candidates: pa.Table) -> pa.Table:
    """Each answer after its prompt, as a Conversation row, with the columns that not every candidate has (`retrieved`, `cited`)."""
    own = {*DATASETS["Candidate"].names, *DATASETS["Conversation"].names, "value"}
    extra = [(field.name, field.type) for field in candidates.schema if field.name not in own]
    rows = [
        {
            **{name: row[name] for name, _ in extra},
            "id": row_id("Conversation", row["id"]),
            "parents": [row["id"]],
            "messages": [*row["prompt"], *row["completion"]],
            "reference": row["reference"],
            "metadata": json.dumps({**_metadata(row), "model": row["model"], "value": row["value"]}),
        }
        for row in candidates.to_pylist()
    ]
    return as_table("Conversation", rows, extra)


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    """What people noted of an answer of their own, if it is a JSON object."""
    try:
        noted = json.loads(row.get("metadata") or "{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", noted) if isinstance(noted, dict) else {}
