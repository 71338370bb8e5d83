"""One scale for many models: Bradley-Terry strengths from all their meetings (Bradley and Terry 1952).

Every model's answers meet every other model's answers to the same prompt; P(a beats b) = sigmoid(s_a - s_b), a tie is half
a win for each. Intervals are 95 %, over resampled prompts: a prompt's meetings hang together.

Shapes: X prompts, M models, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.statistics.bootstrap import Interval
from training.evaluate import resampling, win_rate
from training.evaluate.win_rate import Utilities

Floats = NDArray[np.float64]

# Half a meeting with every other model, won by neither: keeps a model that always wins at a finite strength.
PRIOR = 0.5


def meetings(utilities: Sequence[Utilities]) -> Floats:
    """shares_XMM: on each prompt, the share of answer pairs that the row's model wins, ties half; 0 on the diagonal.

    Raises:
        UserError: the models answered different prompts.
    """
    models, prompts = len(utilities), len(utilities[0])
    shares_XMM = np.zeros((prompts, models, models))
    for i in range(models):
        for j in range(i):
            rate_X = np.array(list(win_rate.by_prompt(utilities[i], utilities[j]).values()))
            shares_XMM[:, i, j], shares_XMM[:, j, i] = rate_X, 1 - rate_X
    return shares_XMM


def strengths(wins_RMM: Floats, steps: int = 100) -> Floats:
    """The most likely strengths_RM, in log-odds around a mean of 0, of one or many tables of wins.

    Newton's method on the likelihood, with half a meeting won by neither between every two models.
    """
    single = wins_RMM.ndim == 2
    w_RMM = wins_RMM[None] if single else wins_RMM
    models = w_RMM.shape[-1]
    w_RMM = w_RMM + PRIOR / 2 * (1 - np.eye(models))
    n_RMM = w_RMM + w_RMM.transpose(0, 2, 1)
    s_RM = np.zeros(w_RMM.shape[:2])
    for _ in range(steps):
        p_RMM = np.exp(-np.logaddexp(0, s_RM[:, None, :] - s_RM[:, :, None]))
        gradient_RM = (w_RMM - n_RMM * p_RMM).sum(2)
        curve_RMM = n_RMM * p_RMM * (1 - p_RMM)
        # the sum of the strengths is free: 1/M fixes it
        hessian_RMM = np.eye(models) * curve_RMM.sum(2)[:, :, None] - curve_RMM + 1 / models
        step_RM = np.linalg.solve(hessian_RMM, gradient_RM[..., None])[..., 0]
        s_RM = s_RM + np.clip(step_RM, -1, 1)
        if np.abs(step_RM).max() < 1e-10:
            break
    s_RM = s_RM - s_RM.mean(1, keepdims=True)
    return s_RM[0] if single else s_RM


def intervals(utilities: Sequence[Utilities], *seed: str | int, resamples: int = 500) -> list[Interval]:
    """Each model's strength in log-odds over the mean of the models, with its interval."""
    shares_XMM = meetings(utilities)
    draws_RX = resampling.counts(len(shares_XMM), resamples, "bradley-terry", *seed)
    drawn_RM = strengths(np.einsum("rx,xij->rij", draws_RX.astype(np.float64), shares_XMM))
    return [resampling.interval(*one) for one in zip(strengths(shares_XMM.sum(0)), drawn_RM.T, strict=True)]
