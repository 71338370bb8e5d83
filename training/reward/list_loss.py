"""The Plackett-Luce model of rankings (Luce 1959; Plackett 1975), with ties and unranked items.

A person picks the best of what is there, then the best of what is left, and so on:

    P(ranking) = prod_i exp(s_i) / sum_{j not ranked above i} exp(s_j)

Of two items this is the Bradley-Terry model. Tied items each compete with everything not ranked above them, their equals
included (Breslow 1974, "Covariance analysis of censored survival data", for ties in Cox's likelihood, which is the same
product). An item that is not ranked is left out: nothing was said about it.

Shapes: L lists, I items of the longest list, K heads.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nll(scores_LIK: Tensor, ranks_LI: Tensor) -> Tensor:
    """Negative log-likelihood_LK of each list, in nats a comparison.

    Dividing by the number of choices made (items that something else competed with) makes a list of four weigh as much
    as a pair.

    Args:
        ranks_LI: 1 is best, equal ranks are ties, 0 is not ranked (or padding).
    """
    ranked_LI = ranks_LI > 0
    # rival_LIJ: j is still there when i is chosen
    rival_LIJ = ranked_LI[:, :, None] & ranked_LI[:, None, :] & (ranks_LI[:, None, :] >= ranks_LI[:, :, None])
    masked_LIJK = torch.where(rival_LIJ[..., None], scores_LIK[:, None], -torch.inf)
    chosen_LI = rival_LIJ.sum(2) > 1  # alone, an item is chosen with certainty
    # rows without any rival would be logsumexp of nothing
    safe_LIJK = torch.where(chosen_LI[:, :, None, None], masked_LIJK, 0.0)
    loss_LIK = torch.where(chosen_LI[..., None], safe_LIJK.logsumexp(2) - scores_LIK, 0.0)
    return loss_LIK.sum(1) / chosen_LI.sum(1).clamp(min=1)[:, None]
