"""Scoring candidates by a reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from engine.store.schema import DATASETS, row_id
from generators.text.chat_template import Unusable
from generators.text.learning_template import learning
from training.models.answers import EncodedAnswer, encode
from training.reward.model import RewardModel
from training.reward.score_stage import Score

if TYPE_CHECKING:
    from engine.stage.job import Job


def score(stage: Score, job: Job) -> None:
    artifact = job.input("reward")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reward = RewardModel.load(artifact.location, device)
    template = learning(reward.tokenizer)
    limit = int(getattr(reward.model.config, "max_position_embeddings", 0) or 2**20)
    for part in job.parts("candidates", rows=stage.partition):
        kept, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
        rows = part.table.to_pylist()
        answers, faults = dict[int, EncodedAnswer](), dict[int, Unusable]()
        for i, row in enumerate(rows):
            try:
                answer = encode(template, row["prompt"] or [], row["completion"] or [], row.get("tools"))
                if len(answer) > limit:
                    raise Unusable("too_long", f"{len(answer)} tokens, the reward model reads {limit}")
                answers[i] = answer
            except Unusable as fault:
                faults[i] = fault
        scores = dict(zip(answers, reward.score(list(answers.values()), stage.pessimism).tolist(), strict=True))
        for i, row in enumerate(rows):
            one: dict[str, Any] = {
                "id": row_id("Verdict", artifact.key, stage.metric, row["id"]),
                "parents": [row["id"]],
            }
            if i in scores:
                one |= {"subject": row["id"], "model": row["model"], "metric": stage.metric}
                kept.append({**one, "value": scores[i], "text": None})
            else:
                rejected.append({**one, "reason": faults[i].reason, "detail": faults[i].detail, "failed": True})
        part.commit(
            pa.Table.from_pylist(kept, DATASETS["Verdict"]), pa.Table.from_pylist(rejected) if rejected else None
        )
    job.summary(reward=artifact.name)
