"""A reward model: a number for a prompt and an answer, read where the answer ends.

On disk it is a `*ForSequenceClassification` model in the Hugging Face layout with one label per head. What was learnt
about its scale after training stands in config.json under `flywheel_reward`: the mean score of the training answers,
which is taken off, what the rest is divided by, and the temperature at which differences of scores are calibrated
log-odds. A model of several objectives (accuracy, safety) has an ensemble of heads for each, and its score is their
weighted sum.

Shapes: B answers, T tokens, D hidden, O objectives (1 where there are none), H heads of an objective, K = O H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from engine.errors import UserError
from engine.plan.model_folder import loading
from generators.text.prompts import load_tokenizer
from training.models.answers import EncodedAnswer
from training.models.padding import PaddedBatch, chunks, pad

FACTS = "flywheel_reward"


def read_heads(model: Any, batch: PaddedBatch) -> Tensor:
    """Raw scores_BK at the last token of each answer.

    transformers looks for the last token that differs from the pad token, which is one too early when the pad token is
    the end token. Here lengths are known.
    """
    hidden_BTD = model.base_model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    last_BD = hidden_BTD[rows_B, batch.length_B - 1]
    with torch.autocast(
        last_BD.device.type, enabled=False
    ):  # one product a row: in float32, whatever the others are in
        return torch.nn.functional.linear(last_BD.float(), model.score.weight.float())


class Heads(nn.Module):
    """`read_heads` as a module: where several processes split a model, it is put together for a module's own forward pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PaddedBatch) -> Tensor:
        return read_heads(self.model, batch)


@dataclass
class RewardModel:
    """A trained reward model, ready to score.

    Attributes:
        mean_K: what each head gave the training answers on average.
        temperature: differences of scores divided by this are calibrated log-odds.
        scale_K: what each head's scores are divided by; None for 1.
        objectives: name -> weight in the sum; empty for a model of one.
    """

    model: Any
    tokenizer: Any
    mean_K: Tensor
    temperature: float
    scale_K: Tensor | None = None
    objectives: Mapping[str, float] = field(default_factory=lambda: {})

    @classmethod
    def load(cls, location: str, device: Any = "cpu") -> RewardModel:
        """Load from a folder in the Hugging Face layout, in float32.

        Raises:
            UserError: it is not a reward model over a decoder.
        """
        with loading(location, "reward model"):
            model = AutoModelForSequenceClassification.from_pretrained(
                location, dtype=torch.float32, trust_remote_code=False
            )
        if not hasattr(model, "score"):
            raise UserError(f"{location} holds a {type(model).__name__}, expected a decoder with a `score` head.")
        facts = getattr(model.config, FACTS, {})
        heads = model.config.num_labels
        mean_K = torch.tensor(facts.get("mean", [0.0] * heads), device=device)
        scale_K = torch.tensor(facts.get("scale", [1.0] * heads), device=device)
        model.to(device).eval()
        return cls(
            model,
            load_tokenizer(location),
            mean_K,
            facts.get("temperature", 1.0),
            scale_K,
            facts.get("objectives", {}),
        )

    def facts(self) -> dict[str, Any]:
        """What goes into config.json."""
        facts: dict[str, Any] = {"mean": self.mean_K.tolist(), "temperature": self.temperature}
        if self.scale_K is not None and (self.scale_K != 1).any():
            facts["scale"] = self.scale_K.tolist()
        return {**facts, "objectives": dict(self.objectives)} if self.objectives else facts

    def by_objective(self, answers: Sequence[EncodedAnswer]) -> Tensor:
        """Centred and scaled scores_BOH, on the CPU, in the order of the answers.

        Raises:
            UserError: a score is not a finite number.
        """
        scores_BK = torch.empty(len(answers), len(self.mean_K))
        with torch.no_grad():
            for chunk in chunks(answers):
                batch = pad([answers[i] for i in chunk], self.mean_K.device)
                scores_BK[chunk] = (read_heads(self.model, batch) - self.mean_K).cpu()
        if not torch.isfinite(scores_BK).all():
            bad = int((~torch.isfinite(scores_BK)).any(1).sum())
            raise UserError(f"the reward model gave {bad} of {len(answers)} answers a score that is NaN or infinite.")
        if self.scale_K is not None:
            scores_BK = scores_BK / self.scale_K.cpu()
        objectives = max(len(self.objectives), 1)
        return scores_BK.reshape(len(answers), objectives, len(self.mean_K) // objectives)

    def heads(self, answers: Sequence[EncodedAnswer]) -> Tensor:
        """The ensemble's scores_BH, on the CPU: of each head, the weighted sum over objectives.

        Raises:
            UserError: a score is not a finite number.
        """
        scores_BOH = self.by_objective(answers)
        if not self.objectives:
            return scores_BOH[:, 0]
        return torch.einsum("boh,o->bh", scores_BOH, torch.tensor(list(self.objectives.values())))

    def score(self, answers: Sequence[EncodedAnswer], pessimism: float = 0.0) -> Tensor:
        """One score_B for each answer: the mean over the heads, less `pessimism` times their standard deviation."""
        scores_BH = self.heads(answers)
        mean_B = scores_BH.mean(1)
        return mean_B - pessimism * scores_BH.std(1, correction=0) if pessimism else mean_B
