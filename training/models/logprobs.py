"""Log-probabilities that a causal language model gives to answers.

Shapes: B answers, T tokens of prompt and answer, R tokens of the longest answer, K last positions that are looked at,
V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.models.answers import Answer
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
    """Run a causal model over a batch; only positions from the shortest prompt's end on reach the output head."""
    length = batch.ids_BT.shape[1]
    first = int(batch.prompt_B.min())
    # Position t predicts token t+1; the last position predicts nothing.
    kept = length - first + 1
    output = model(input_ids=batch.ids_BT, logits_to_keep=kept, use_cache=False, output_hidden_states=hidden)
    logits_BKV = output.logits[:, :-1].float()
    labels_BK = batch.ids_BT[:, first:]
    normaliser_BK = logits_BKV.logsumexp(-1)
    logprobs_BK = logits_BKV.gather(-1, labels_BK[..., None])[..., 0] - normaliser_BK
    steps_R = torch.arange(int(batch.response_B.max()), device=batch.ids_BT.device)
    place_BR = (batch.prompt_B[:, None] - first + steps_R[None]).clamp(max=labels_BK.shape[1] - 1)
    entropy_BR = None
    if entropy:
        # H = log Z - E[logit]
        entropy_BK = normaliser_BK - (torch.softmax(logits_BKV, -1) * logits_BKV).sum(-1)
        entropy_BR = entropy_BK.gather(1, place_BR)
    hidden_BRD = None
    if hidden:
        hidden_BKD = output.hidden_states[-1][:, first - 1 : -1]
        hidden_BRD = hidden_BKD.gather(1, place_BR[..., None].expand(-1, -1, hidden_BKD.shape[-1]))
    return Forward(logprobs_BK.gather(1, place_BR), entropy_BR, hidden_BRD)


def token_logprobs(model: Any, answers: Sequence[Answer]) -> list[Tensor]:
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
