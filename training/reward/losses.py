"""What a reward model is trained to make small: the loss of a batch of pairs, and of a batch of rankings.

Shapes: P pairs, B answers (of pairs 2P, chosen first), L lists, I items of the longest list, O objectives, H heads of each,
K = O H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.models.padding import pad
from training.reward.list_loss import nll
from training.reward.model import Heads
from training.reward.reward_stage import Reward

if TYPE_CHECKING:
    from training.preference.pairs import Pair
    from training.reward.rankings import Ranked


class Learnt(NamedTuple):
    """What a part of a batch says.

    Attributes:
        loss: the sum over its examples and heads, each times its weight.
        right, compared: of the pairs in it, how many the ensemble's mean orders as people did, and how many there are.
    """

    loss: Tensor
    right: float
    compared: float


def weights(batch: Sequence[Pair | Ranked], bootstrap_BK: np.ndarray) -> Tensor:
    """What each example counts for each head."""
    return torch.tensor(bootstrap_BK, dtype=torch.float32) * torch.tensor([one.weight for one in batch])[:, None]


def pair_loss(stage: Reward, heads: Heads, batch: Sequence[Pair], weight_PK: Tensor) -> Learnt:
    """Of pairs."""
    device = next(heads.parameters()).device
    both = pad([*(pair.chosen for pair in batch), *(pair.rejected for pair in batch)], device)
    chosen_PK, rejected_PK = heads(both).chunk(2)
    margin_P = torch.tensor([pair.margin if stage.margin else 0.0 for pair in batch], device=device)
    label_P = torch.tensor([pair.agreement if stage.soft else 1.0 for pair in batch], device=device)
    weight_PK = weight_PK.to(device)
    difference_PK = chosen_PK - rejected_PK - margin_P[:, None]
    loss_PK = -(label_P[:, None] * logsigmoid(difference_PK) + (1 - label_P)[:, None] * logsigmoid(-difference_PK))
    loss_PK = loss_PK + stage.centre * (chosen_PK + rejected_PK) ** 2
    used_PK = (weight_PK > 0) if stage.objectives else torch.ones_like(weight_PK, dtype=torch.bool)
    right_P = ((chosen_PK - rejected_PK) * used_PK).sum(1) > 0
    return Learnt((weight_PK * loss_PK).sum(), float(right_P.sum()), len(batch))


def ranking_loss(stage: Reward, heads: Heads, lists: Sequence[Ranked], weight_LK: Tensor) -> Learnt:
    """Of rankings."""
    device = next(heads.parameters()).device
    raw_BK = heads(pad([answer for one in lists for answer in one.answers], device))
    longest = max(len(one.ranks) for one in lists)
    ranks_LI = torch.tensor([one.ranks + [0] * (longest - len(one.ranks)) for one in lists], device=device)
    present_LI = torch.tensor([[i < len(one.ranks) for i in range(longest)] for one in lists], device=device)
    scores_LIK = torch.zeros(*ranks_LI.shape, raw_BK.shape[1], device=device)
    scores_LIK = scores_LIK.masked_scatter(present_LI[..., None], raw_BK)
    ranked_LI1 = (ranks_LI > 0)[..., None]
    centre_LK = (scores_LIK**2 * ranked_LI1).sum(1) / ranked_LI1.sum(1)
    loss_LK = nll(scores_LIK, ranks_LI) + 4 * stage.centre * centre_LK  # of a pair: (2 mean)^2
    mean_LI = scores_LIK.detach().mean(2)
    above_LII = (ranks_LI[:, :, None] > 0) & (ranks_LI[:, :, None] < ranks_LI[:, None, :])
    agree_LII = mean_LI[:, :, None] > mean_LI[:, None, :]
    loss = (weight_LK.to(device) * loss_LK).sum()
    return Learnt(loss, float((above_LII & agree_LII).sum()), float(above_LII.sum()))
