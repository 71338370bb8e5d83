"""Deduplicating documents, by the method asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from engine.errors import UserError
from engine.stage.job import Job
from pipelines.dedup import phases
from pipelines.dedup.phases import Phases
from pipelines.dedup.stage import Dedup
from pipelines.texts.kept_texts import KeptTexts


def deduplicate(stage: Dedup, job: Job) -> None:
    if stage.method != "minhash" and job.all("index"):
        raise UserError(f"the input `index` is for `method: minhash`, found {stage.method}.")
    if stage.method == "substring" or stage.level != "document":
        from pipelines.dedup.repeats import remove_repeats  # imports numba, which the other methods do without

        remove_repeats(stage, job)
        return
    if stage.method == "semantic":
        from pipelines.dedup.semantic import remove_alike  # imports torch, which the other methods do without

        remove_alike(stage, job)
        return
    with _kept(stage) as kept:
        under_way = Phases.begin(stage, job, kept)
        facts: dict[str, Any] = {"exact": under_way.bucket()}
        near: list[str] = []
        if under_way.banding:
            near = under_way.near(facts)
            facts |= {
                "bands": under_way.banding.bands,
                "rows": under_way.banding.rows,
                "curve": under_way.banding.curve(),
            }
            facts["expected_recall"] = round(under_way.banding.recall(stage.threshold), 4)
        under_way.write(facts, under_way.buckets, near)


@contextlib.contextmanager
def _kept(stage: Dedup) -> Generator[KeptTexts]:
    kept = KeptTexts(int(phases.TEXTS * stage.memory_gb * 1e9))
    try:
        yield kept
    finally:
        kept.close()
