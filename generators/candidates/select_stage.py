"""`select`: of the answers to each prompt, those that verdicts speak for.

- best-of-N: `best: 1`;
- a threshold, as in rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825): `at_least: 1.0`;
- statistical rejection sampling (Liu et al. 2023, arXiv:2309.06657, algorithm 1): `beta: 0.5` keeps an answer with
  probability exp((r - max r) / beta), the maximum over the answers to its prompt.

Verdicts come from wherever: a reward model (`score`), a rule or a judge (`judge`). Nothing is generated.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from engine import seeds
from engine.errors import UserError, nearest
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.schema import DATASETS, row_id

KEPT = "kept"


class Select(Stage):
    """Keep the best answers to each prompt by their verdicts: best-of-N, a threshold, rejection sampling."""

    takes = {"candidates": port("Candidate", many=True), "verdicts": port("Verdict", many=True)}
    gives = "Candidate"
    phase = "generation"
    random = True

    metric: str | None = Field(None, description="What to go by; may be left out if there is one metric only.")
    weights: dict[str, float] = Field({}, description="Metric -> weight, to go by a weighted sum instead.")
    best: int | None = Field(None, ge=1, description="Keep at most this many answers to a prompt, the best first.")
    at_least: float | None = Field(None, description="Keep answers of this value or more.")
    beta: float | None = Field(None, gt=0, description="Statistical rejection sampling at this temperature.")
    give: Literal["candidates", "conversations"] = Field(
        "candidates", description="conversations: for SFT on what was kept."
    )

    @model_validator(mode="after")
    def _check(self) -> Select:
        if self.best is None and self.at_least is None and self.beta is None:
            raise ValueError("nothing to select by: give `best`, `at_least` or `beta`")
        if self.metric is not None and self.weights:
            raise ValueError("`metric` and `weights` both say what to go by; give one of them")
        return self

    def output(self, given: dict[str, list[str]]) -> str:
        return "Conversation" if self.give == "conversations" else "Candidate"

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        if self.beta is None:  # nothing is drawn
            identity.pop("seed")
        return identity

    def run(self, job: Job) -> None:
        chosen = self._choose(job, self._values(job))
        for part in job.parts("candidates"):
            told = pl.DataFrame({"id": part.table["id"].to_pylist()}).join(
                chosen, on="id", how="left", maintain_order="left"
            )
            kept = pa.array((told["why"] == KEPT).to_list())
            table = part.table.filter(kept).append_column(
                "value", told.filter(pl.col("why") == KEPT)["value"].to_arrow()
            )
            lost = told.filter(pl.col("why") != KEPT)
            rejected = part.table.select(["id", "parents", "prompt", "completion", "model"]).filter(
                pa.compute.invert(kept)  # pyright: ignore
            )
            rejected = rejected.append_column("reason", lost["why"].to_arrow().cast(pa.string()))
            rejected = rejected.append_column("detail", lost["detail"].to_arrow().cast(pa.string()))
            rejected = rejected.append_column("failed", (lost["why"] == "no_verdict").to_arrow())
            part.commit(conversations(table) if self.give == "conversations" else table, rejected)
        kept = chosen.filter(pl.col("why") == KEPT)
        job.summary(
            candidates=len(chosen),
            kept=len(kept),
            prompts=chosen["prompt_id"].n_unique(),
            prompts_kept=kept["prompt_id"].n_unique(),
            value={"all": _mean(chosen), "kept": _mean(kept)},
        )

    def _values(self, job: Job) -> pl.DataFrame:
        """What each subject is worth: the mean over its verdicts, or their weighted sum over metrics.

        Raises:
            UserError: it is not clear which metric counts, or there is no such metric.
        """
        columns = ["subject", "metric", "value"]
        verdicts = pl.concat([pl.DataFrame(a.to_table(columns)) for a in job.all("verdicts")])
        verdicts = verdicts.filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan())
        known = sorted(verdicts["metric"].unique().to_list())
        if not self.weights and self.metric is None and len(known) != 1:
            raise UserError(f"which metric counts? Set `metric` or `weights`; the verdicts have {', '.join(known)}.")
        weights = self.weights or {self.metric or known[0]: 1.0}
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

    def _choose(self, job: Job, values: pl.DataFrame) -> pl.DataFrame:
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
        if self.at_least is not None:
            rows = _drop(rows, pl.col("value") < self.at_least, "below")
        if self.beta is not None:
            draws = [seeds.derive(job.seed, "select", one) / 2**63 for one in rows["id"]]
            short = (pl.col("value") - pl.col("value").max().over("prompt_id")) / self.beta
            rows = rows.with_columns(pl.Series("draw", np.log(np.maximum(draws, 1e-300))))
            rows = _drop(rows, pl.col("draw") >= short, "not_drawn").drop("draw")
        if self.best is not None:
            standing = pl.when(pl.col("why") == KEPT).then(-pl.col("value"))
            # Of equal answers the earlier: an order that nobody's taste had a part in.
            place = pl.struct(standing, "sample", "id").rank("ordinal").over("prompt_id", "why")
            rows = _drop(rows, place > self.best, "not_best")
        return rows.with_columns(pl.format("its value is {}", pl.col("value").round(6)).alias("detail"))


def _drop(rows: pl.DataFrame, where: pl.Expr, why: str) -> pl.DataFrame:
    kept = pl.col("why") == KEPT
    return rows.with_columns(pl.when(kept & where).then(pl.lit(why)).otherwise(pl.col("why")).alias("why"))


def _mean(rows: pl.DataFrame) -> float | None:
    mean = rows["value"].drop_nulls().mean()
    return round(float(mean), 6) if isinstance(mean, int | float) else None


def conversations(candidates: pa.Table) -> pa.Table:
    """Each answer after its prompt, as a Conversation row."""
    rows = [
        {
            "id": row_id("Conversation", row["id"]),
            "parents": [row["id"]],
            "messages": [*row["prompt"], *row["completion"]],
            "reference": row["reference"],
            "metadata": json.dumps({"model": row["model"], "value": row["value"]}),
        }
        for row in candidates.to_pylist()
    ]
    return pa.Table.from_pylist(rows, DATASETS["Conversation"])
