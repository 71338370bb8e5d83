"""`score`: what a reward model says of answers that are there already. Nothing is generated."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import Field

from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.schema import DATASETS, row_id


class Score(Stage):
    """Score candidates by a reward model."""

    takes = {"candidates": port("Candidate", many=True), "reward": port("RewardModel")}
    gives = "Verdict"
    phase = "training"

    metric: str = Field("reward", description="What to call the measurement.")
    pessimism: float = Field(0.0, ge=0, description="Standard deviations over an ensemble's heads taken off its mean.")
    partition: int = Field(1024, ge=1, description="Candidates a partition.")

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return rows["candidates"]

    def run(self, job: Job) -> None:
        import torch

        from training.models.answers import encode
        from training.reward.model import RewardModel

        artifact = job.input("reward")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reward = RewardModel.load(artifact.location, device)
        limit = int(getattr(reward.model.config, "max_position_embeddings", 0) or 2**20)
        for part in job.parts("candidates", rows=self.partition):
            kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
            rows = part.table.select(["id", "prompt", "completion", "model"]).to_pylist()
            answers = [encode(reward.tokenizer, row["prompt"], row["completion"]) for row in rows]
            fits = [i for i, answer in enumerate(answers) if len(answer) <= limit]
            scores = dict(zip(fits, reward.score([answers[i] for i in fits], self.pessimism).tolist(), strict=True))
            for i, row in enumerate(rows):
                one = {"id": row_id("Verdict", artifact.key, self.metric, row["id"]), "parents": [row["id"]]}
                if i in scores:
                    told = {"subject": row["id"], "model": row["model"], "metric": self.metric}
                    kept.append({**one, **told, "value": scores[i], "text": None})
                else:
                    detail = f"{len(answers[i])} tokens, the reward model reads {limit}"
                    rejected.append({**one, "reason": "too_long", "detail": detail, "failed": True})
            part.commit(
                pa.Table.from_pylist(kept, DATASETS["Verdict"]), pa.Table.from_pylist(rejected) if rejected else None
            )
        job.summary(reward=artifact.id)
