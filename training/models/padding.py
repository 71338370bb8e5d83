"""Batches of answers.

Shapes: B answers, T tokens of the longest prompt and answer, R tokens of the longest answer.

Batches are padded on the right and need no attention mask: a causal model's real tokens never see what follows them,
so padding can't change a result, and positions count from 0 in every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.hardware.memory import TOKENS
from training.models.answers import EncodedAnswer


@dataclass(frozen=True)
class PaddedBatch:
    """Answers padded on the right.

    Attributes:
        ids_BT: prompt and response, then padding.
        prompt_B, response_B: their lengths in tokens, each at least 1.
    """

    ids_BT: Tensor
    prompt_B: Tensor
    response_B: Tensor

    @property
    def length_B(self) -> Tensor:
        return self.prompt_B + self.response_B

    @property
    def mask_BR(self) -> Tensor:
        """True on response tokens, of which each row's stand from column 0 on."""
        steps_R = torch.arange(int(self.response_B.max()), device=self.ids_BT.device)
        return steps_R[None] < self.response_B[:, None]


def pad(answers: Sequence[EncodedAnswer], device: Any = "cpu", pad_id: int = 0) -> PaddedBatch:
    """One batch, as long as its longest answer. Which id pads is of no consequence."""
    longest = max(map(len, answers))
    rows = [[*a.prompt, *a.response, *[pad_id] * (longest - len(a))] for a in answers]
    return PaddedBatch(
        torch.tensor(rows, device=device),
        torch.tensor([len(a.prompt) for a in answers], device=device),
        torch.tensor([len(a.response) for a in answers], device=device),
    )


def chunks(
    answers: Sequence[EncodedAnswer], tokens: int = TOKENS, slack: int = 512, most: int | None = None
) -> Iterator[list[int]]:
    """Indices of all answers, cut into batches of at most this many padded tokens, similar lengths together.

    Args:
        most: answers of a batch at most.
        slack: padding that a batch may hold (or an eighth of its tokens, if that is more). Another pass over a tiny model
            costs as much as a few hundred tokens.
    """
    order = sorted(range(len(answers)), key=lambda i: (len(answers[i]), i))
    chunk: list[int] = []
    real = 0
    for i in order:
        longest = len(answers[i])
        if chunk and (
            len(chunk) == most
            or (len(chunk) + 1) * longest > tokens
            or len(chunk) * longest - real > max(slack, (real + longest) // 8)
        ):
            yield chunk
            chunk, real = [], 0
        chunk.append(i)
        real += longest
    if chunk:
        yield chunk
