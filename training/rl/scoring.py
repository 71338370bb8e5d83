"""What an answer is worth: a reward model, rules that can be checked, or a weighted sum of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import UserError
from engine.stage.job import Job
from engine.store.schema import stored
from generators.rules.answer_columns import COLUMNS, MESSAGES
from generators.rules.rule import Rule
from generators.rules.verify import measure
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.learning_template import LearningTemplate, learning
from training.models.answers import EncodedAnswer, encode
from training.reward.model import RewardModel
from training.rl.rollouts import Rollout


@dataclass
class Scorer:
    """Scores rollouts by a reward model, by rules, or by both.

    Attributes:
        reward: may be None if there are rules.
        rules: name -> expression or verifier.
        weights: name -> weight in the sum, 1 where not named; `reward` is the reward model's.
        pessimism: standard deviations over an ensemble's heads that are taken off its mean.
        same_tokens: the reward model reads the policy's own token ids; otherwise the text is tokenised anew for it.
        base: the folder of the recipe, where rules that are Python functions are.
    """

    reward: RewardModel | None
    rules: Mapping[str, Rule]
    weights: Mapping[str, float]
    pessimism: float = 0.0
    same_tokens: bool = True
    base: str = "."

    def __post_init__(self) -> None:
        if self.reward is None and not self.rules:
            raise UserError("nothing says what an answer is worth: give a reward model (`reward`) or `rules`.")
        if unknown := set(self.weights) - {*self.rules, "reward"}:
            raise UserError(
                f"`weights` names {', '.join(sorted(unknown))}; known are reward, {', '.join(self.rules) or '(no rules)'}."
            )

    def score(self, rollouts: Sequence[Rollout]) -> tuple[NDArray[np.float64], dict[str, float]]:
        """The score of each rollout, and the mean of every part that went into it."""
        parts: dict[str, NDArray[np.float64]] = {}
        extra: dict[str, float] = {}
        if self.reward is not None:
            answers = [self.read(rollout) for rollout in rollouts]
            heads_BK = self.reward.heads(answers).double()
            parts["reward"] = heads_BK.mean(1).numpy()
            if heads_BK.shape[1] > 1:
                deviation = heads_BK.std(1, correction=0).numpy()
                extra["disagreement"] = float(deviation.mean())
                parts["reward"] = parts["reward"] - self.pessimism * deviation
        if self.rules:
            rows = frame(rollouts)
            for name, rule in self.rules.items():
                parts[name] = measure(rule, rows, name, self.base)
        total = sum((self.weights.get(name, 1.0) * values for name, values in parts.items()), np.zeros(len(rollouts)))
        return total, {**{name: float(values.mean()) for name, values in parts.items()}, **extra}

    def read(self, rollout: Rollout) -> EncodedAnswer:
        """The rollout as the reward model was trained to read it: closed by the end of the turn, where the score is.

        Raises:
            UserError: its chat template can't show it the prompt.
        """
        question, end = rollout.question, self.template.stop_ids()[-1]
        if self.same_tokens:
            ids = rollout.token_ids
            return EncodedAnswer(question.token_ids, ids if ids and ids[-1] == end else [*ids, end])
        try:
            said = [{"role": "assistant", "content": rollout.text}]
            return encode(self.template, question.messages, said, question.tools)
        except Unusable as fault:
            try:
                prompt = self.template.prompt(question.messages, question.tools)
            except Unusable:
                raise UserError(
                    f"the reward model can't be shown prompt {question.id}: {fault.detail}. Leave the prompt out."
                ) from fault
            # What a policy says may be a control token of another model's: this one reads it as plain text.
            tokenizer: Any = self.template.tokenizer
            plain = tokenizer.encode(rollout.text, add_special_tokens=False, split_special_tokens=True)
            return EncodedAnswer(prompt, [*plain, end])

    @cached_property
    def template(self) -> LearningTemplate:
        """The reward model's."""
        assert self.reward is not None
        return learning(self.reward.tokenizer)


def frame(rollouts: Sequence[Rollout]) -> pl.DataFrame:
    """The columns that rules see (`answer_columns.readable`), one row for each rollout."""
    said = [[{"role": "assistant", "content": r.text}] for r in rollouts]
    return pl.DataFrame(
        {
            "completion": [r.text for r in rollouts],
            "reference": [r.question.reference for r in rollouts],
            "prompt": [r.question.said for r in rollouts],
            "length": [len(r.token_ids) for r in rollouts],
            "finish_reason": [r.finish_reason for r in rollouts],
            "prompt_messages": [stored(r.question.messages) for r in rollouts],
            "completion_messages": said,
            "completion_ids": [r.token_ids for r in rollouts],
        },
        schema={**COLUMNS, **MESSAGES},
    )


def same_tokenizer(a: Any, b: Any) -> bool:
    """Whether two tokenizers give the same ids to the same chat."""
    probe = [{"role": "user", "content": "Why is 12 + 3 = 15?\nÄ"}]
    if a.get_vocab() != b.get_vocab() or a.eos_token_id != b.eos_token_id:
        return False
    one, other = ChatTemplate(a), ChatTemplate(b)
    return one.end == other.end and one.prompt(probe) == other.prompt(probe)


def make_scorer(
    job: Job, tokenizer: Any, rules: Mapping[str, Rule], weights: dict[str, float], pessimism: float, device: Any
) -> Scorer:
    """The scorer of a job; says so when the reward model has a tokenizer of its own."""
    given = job.maybe("reward")
    reward = RewardModel.load(given.location, device) if given else None
    same = reward is None or same_tokenizer(reward.tokenizer, tokenizer)
    if not same:
        job.say("The reward model has another tokenizer than the policy: it gets each answer's text, tokenised anew.")
    return Scorer(reward, rules, weights, pessimism, same, job.base)
