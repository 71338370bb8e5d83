"""What a policy learnt from, kept beside it: `rollouts/ITERATION.parquet`, one row an answer, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.stage.job import Job
from engine.store.parquet import encode, read_parquet
from training.rl.rollouts import Rollout


def keep(job: Job, iteration: int, rollouts: Sequence[Rollout], scores: np.ndarray) -> None:
    """Write the rollouts of an iteration. One that is repeated replaces itself."""
    table = pa.table(
        {
            "iteration": pa.array([iteration] * len(rollouts), pa.int32()),
            "prompt_id": [r.question.id for r in rollouts],
            "prompt": [r.question.said for r in rollouts],
            "completion": [r.text for r in rollouts],
            "token_ids": pa.array([r.token_ids for r in rollouts], pa.list_(pa.int32())),
            "finish_reason": [r.finish_reason for r in rollouts],
            "score": pa.array(scores, pa.float64()),
        }
    )
    with job.keep(job.output / "rollouts" / f"{iteration:05d}.parquet") as partial:
        partial.write_bytes(encode(table))


def consumed(job: Job) -> tuple[str, int]:
    """(a digest of everything that was learnt from: each prompt's id and sampled ids, in order; how many answers)."""
    digest, count = hashlib.blake2b(digest_size=16), 0
    for file in sorted((job.output / "rollouts").glob("*.parquet")):
        for row in read_parquet(file, ["prompt_id", "token_ids"]).to_pylist():
            digest.update(f"{row['prompt_id']}:{row['token_ids']};".encode())
            count += 1
    return digest.hexdigest(), count


def warn_of_sameness(
    job: Job, iteration: int, rollouts: Sequence[Rollout], scores: np.ndarray, missing_eos: float, groups: int = 1
) -> None:
    """Say so when an iteration can teach nothing, or nothing but to end an answer, and why.

    Args:
        scores: before `missing_eos` is taken off the answers that were cut.
        groups: how many equal runs of answers are compared among themselves alone: GRPO's prompts.
    """
    if len({tuple(rollout.token_ids) for rollout in rollouts}) == 1:
        job.say(
            f"Iteration {iteration + 1}: all {len(rollouts)} answers are equal, so that no advantage can be seen. "
            "The policy has collapsed: a larger `beta` or a smaller `lr` would have kept it alive."
        )
        return
    if np.ptp(scores.reshape(groups, -1), axis=1).any():
        return
    if np.ptp(scores):
        alike = f"the {len(rollouts) // groups} answers to each of {groups} prompts score alike"
    else:
        alike = f"all {len(rollouts)} answers score {scores[0]:.4g}"
    cut = np.array([not rollout.ended for rollout in rollouts])
    worth = (scores - missing_eos * cut).reshape(groups, -1)
    cause = (
        f"{cut.sum()} were cut at `max_tokens`: raise it, so that they can be right before they are cut. "
        if cut.any()
        else ""
    )
    if np.ptp(worth, axis=1).any():
        learnt = f"Until then all that is learnt is to end an answer, from `missing_eos` ({missing_eos:g})."
    else:
        learnt = "A constant reward teaches nothing but the KL penalty."
    job.say(f"Iteration {iteration + 1}: {alike}. {cause}{learnt}")
