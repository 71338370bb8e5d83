"""Log-probabilities that a causal language model gives to answers.

Shapes: B answers, T tokens of prompt and answer, R tokens of the longest answer, N tokens of all answers, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.models.answers import EncodedAnswer
from training.models.output_head import Scored, scaling_of, score
from training.models.padding import PaddedBatch, chunks, pad


@dataclass(frozen=True)
class Forward:
    """What one forward pass says about the response tokens. Columns past a row's response hold no meaning.

    Attributes:
        logprobs_BR: log p(token | everything before it), in nats.
        entropy_BR: of the distribution the token was drawn from, in nats; None unless asked for.
        hidden_BRD: last hidden state where the token is about to be chosen; None unless asked for.
    """

    logprobs_BR: Tensor
    entropy_BR: Tensor | None
    hidden_BRD: Tensor | None


def forward(model: Any, batch: PaddedBatch, entropy: bool = False, hidden: bool = False) -> Forward:
    """Run a causal model over a batch; only the places where response tokens are chosen reach the output head."""
    _score_answers(model.get_base_model() if hasattr(model, "peft_config") else model)
    found: AnswerScores = model(input_ids=batch.ids_BT, use_cache=False, answers=batch, entropy=entropy, hidden=hidden)
    mask_BR = batch.mask_BR

    def spread(x_N: Tensor) -> Tensor:
        return x_N.new_zeros(mask_BR.shape).masked_scatter(mask_BR, x_N)

    entropy_N = found.scored.entropy_N
    return Forward(spread(found.scored.logprobs_N), None if entropy_N is None else spread(entropy_N), found.hidden_BRD)


class AnswerScores(NamedTuple):
    """Tensors that FSDP2 finds: it looks for those whose backward pass begins there."""

    scored: Scored
    hidden_BRD: Tensor | None


def _score_answers(model: Any) -> None:
    """Teach a transformers model a second forward pass, which ends with scores of answers instead of logits.

    It has to be the model's own, since FSDP2 puts a split model together for that alone, and adapters are a part of it.
    """
    if hasattr(model, "_flywheel_forward"):
        return
    model._flywheel_forward = model.forward
    scaling = scaling_of(model.config)

    def scored_forward(
        self: Any, *args: Any, answers: PaddedBatch | None = None, entropy: bool = False, hidden: bool = False, **kwargs: Any
    ) -> Any:  # fmt: skip
        if answers is None:
            return self._flywheel_forward(*args, **kwargs)
        hidden_BTD = self.base_model(*args, **kwargs).last_hidden_state
        mask_BR = answers.mask_BR
        steps_R = torch.arange(mask_BR.shape[1], device=mask_BR.device)
        # Position t predicts token t+1.
        place_BR = (answers.prompt_B[:, None] - 1 + steps_R[None]).clamp(max=answers.ids_BT.shape[1] - 2)
        hidden_BRD = hidden_BTD.gather(1, place_BR[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
        targets_BR = answers.ids_BT.gather(1, place_BR + 1)
        found = score(hidden_BRD[mask_BR], self.get_output_embeddings(), targets_BR[mask_BR], scaling, entropy)
        return AnswerScores(found, hidden_BRD.float() if hidden else None)

    model.forward = MethodType(scored_forward, model)


def token_logprobs(model: Any, answers: Sequence[EncodedAnswer]) -> list[Tensor]:
    """Log-probabilities of each answer's response tokens, without gradients, on the CPU, in the order given."""
    device = next(model.parameters()).device
    by_answer: list[Any] = [None] * len(answers)
    with torch.no_grad():
        for chunk in chunks(answers):
            batch = pad([answers[i] for i in chunk], device)
            logprobs_BR = forward(model, batch).logprobs_BR.cpu()
            for row, i in enumerate(chunk):
                by_answer[i] = logprobs_BR[row, : len(answers[i].response)].clone()
    return by_answer
