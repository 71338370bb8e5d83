"""Answers that were sampled before (Candidate artifacts), to be measured anew: by other rules, or by another reward model.

No token is generated. Where the reward model's tokenizer reads a row's prompt and answer into the ids that were sampled,
those ids are scored; otherwise the answer's text is tokenised anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.artifact import Artifact
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.prompts import decode, said
from training.reward.model import RewardModel
from training.rl.rollouts import Question, Rollout
from training.rl.scoring import Scorer


def load_rollouts(artifact: Artifact) -> list[Rollout]:
    """The answers of a Candidate artifact, prompt by prompt, each prompt's in the order they were sampled.

    Raises:
        UserError: a row has no answer, or there is none.
    """
    rows = artifact.to_table().to_pylist()
    if not rows:
        raise UserError(f"{artifact.id} holds no candidates to measure.")
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(row["prompt_id"] for row in rows))}
    found: list[Rollout] = []
    for row in sorted(rows, key=lambda row: (place[row["prompt_id"]], row["sample"] or 0)):
        if not row["completion"]:
            raise UserError(f"candidate {row['id']} of {artifact.id} has no `completion`.")
        messages, ids = said(row["prompt"] or []), list(row["prompt_token_ids"] or [])
        question = Question(row["prompt_id"], messages, row["reference"], ids, row.get("tools"))
        text = row["completion"][-1]["content"] or ""
        found.append(Rollout(question, list(row["token_ids"] or []), text, row["finish_reason"] or "stop"))
    return found


def score_rollouts(job: Job, rollouts: Sequence[Rollout]) -> NDArray[np.float64]:
    """What the job's reward model gives each of them."""
    reward = RewardModel.load(job.input("reward").location)
    template = ChatTemplate(reward.tokenizer)
    scorer = Scorer(reward, {}, {}, same_tokens=all(reads_alike(template, r) for r in rollouts[:16]))
    return scorer.score(rollouts)[0]


def reads_alike(template: ChatTemplate, rollout: Rollout) -> bool:
    """Whether a model's tokenizer has the ids that this answer was sampled with."""
    ids, question = rollout.token_ids, rollout.question
    if not ids or max(ids) >= len(template.tokenizer):
        return False
    try:
        prompt = template.prompt(question.messages, question.tools)
    except Unusable:
        return False
    text = decode(template.tokenizer, ids)
    return prompt == question.token_ids and rollout.text.strip() in (text, template.apart(ids, text)[1].strip())
