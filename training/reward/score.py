"""Scoring candidates by a reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from engine.store.schema import DATASETS, row_id
from training.models.answers import encode
from training.reward.model import RewardModel
from training.reward.score_stage import Score

if TYPE_CHECKING:
    from engine.stage.job import Job


def score(stage: Score, job: Job) -> None:
    artifact = job.input("reward")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reward = RewardModel.load(artifact.location, device)
    limit = int(getattr(reward.model.config, "max_position_embeddings", 0) or 2**20)
    for part in job.parts("candidates", rows=stage.partition):
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        rows = part.table.select(["id", "prompt", "completion", "model"]).to_pylist()
        answers = [encode(reward.tokenizer, row["prompt"], row["completion"]) for row in rows]
        fits = [i for i, answer in enumerate(answers) if len(answer) <= limit]
        scores = dict(zip(fits, reward.score([answers[i] for i in fits], stage.pessimism).tolist(), strict=True))
        for i, row in enumerate(rows):
            one: dict[str, Any] = {
                "id": row_id("Verdict", artifact.key, stage.metric, row["id"]),
                "parents": [row["id"]],
            }
            if i in scores:
                one |= {"subject": row["id"], "model": row["model"], "metric": stage.metric}
                kept.append({**one, "value": scores[i], "text": None})
            else:
                detail = f"{len(answers[i])} tokens, the reward model reads {limit}"
                rejected.append({**one, "reason": "too_long", "detail": detail, "failed": True})
        part.commit(
            pa.Table.from_pylist(kept, DATASETS["Verdict"]), pa.Table.from_pylist(rejected) if rejected else None
        )
    job.summary(reward=artifact.name)
