"""Win rates as they would be if answers were of the same length (Dubois, Galambosi, Liang and Hashimoto 2024,
"Length-controlled AlpacaEval", eq. 1 and 2).

A judge that likes long answers pays whoever writes more. The log-odds that model m beats the baseline b on prompt x are

    theta_m  +  phi_m tanh((length_m(x) - length_b(x)) / sd)  +  psi_m gamma_x

how good the model is, what its extra length pays, and how it takes to prompts that are hard for the baseline's rivals
(`gamma`, shared by all models). The length-controlled win rate leaves the middle term out:

    mean over x of sigmoid(theta_m + psi_m gamma_x)

The baseline against itself is 1/2 by construction. All models are fitted together: `gamma` given the models' terms, the
models' terms given `gamma`, in turn, each a small penalised logistic regression by Newton steps. Differs from the
paper: `gamma` comes from these models rather than from a published file, and phi is shrunk towards what all models
share, rather than through a baseline that games its length.

Shapes: M models, X prompts, Q = 3 terms of a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.errors import UserError
from engine.statistics.bootstrap import Interval
from training.evaluate import resampling

Floats = NDArray[np.float64]

# Precisions of the normal priors. A model's quality is hardly shrunk. What length pays is shrunk towards the mean of
# all models, and the pull of hard prompts towards 1, the scale that `gamma` is measured in.
QUALITY, LENGTH, DIFFICULTY, PROMPT = 0.01, 5.0, 5.0, 1.0


@dataclass(frozen=True)
class Controlled:
    """What was found.

    Attributes:
        win_rate_M: length-controlled, in [0, 1].
        raw_M: mean preference, in [0, 1].
        theta_M, phi_M, psi_M, gamma_X: the terms; `phi` in log-odds where a model is much longer.
        predicted_MX: log-odds without the length term.
        preference_MX, longer_MX: what was fitted, NaN where there was no judgement; tanh of the difference in length.
    """

    win_rate_M: Floats
    raw_M: Floats
    theta_M: Floats
    phi_M: Floats
    psi_M: Floats
    gamma_X: Floats
    predicted_MX: Floats
    preference_MX: Floats
    longer_MX: Floats

    def interval(self, model: int, *seed: str | int, resamples: int = 500) -> Interval:
        """The length-controlled win rate of one model with its 95 % interval: prompts are drawn anew, and the model's own
        terms fitted to each draw; what all models share (`gamma`, the mean of `phi`) is held."""
        y_X, gamma_X = self.preference_MX[model], self.gamma_X
        prompts = len(y_X)
        draws_RX = resampling.counts(prompts, resamples, "length control", *seed)
        judged_RX = draws_RX * np.isfinite(y_X)
        design_XQ = np.stack([np.ones(prompts), self.longer_MX[model], gamma_X], axis=1)
        start_Q = np.array([self.theta_M[model], self.phi_M[model], self.psi_M[model]])
        centre_Q = np.array([0.0, self.phi_M.mean(), 1.0])
        terms_RQ = newton(np.tile(start_Q, (resamples, 1)), design_XQ, judged_RX, np.nan_to_num(y_X), centre_Q)
        rate_R = (draws_RX * _sigmoid(terms_RQ[:, :1] + terms_RQ[:, 2:] * gamma_X)).sum(1) / prompts
        return resampling.interval(self.win_rate_M[model], rate_R)


def newton(terms_NQ: Floats, design_XQ: Floats, weight_NX: Floats, y_NX: Floats, centre_Q: Floats) -> Floats:
    """A few steps towards the most likely terms of N logistic regressions.

    Args:
        design_XQ: the same for all, or one for each: design_NXQ.
        y_NX: the same for all, or for each.
    """
    each = "nxq" if design_XQ.ndim == 3 else "xq"
    penalty_Q = np.array([QUALITY, LENGTH, DIFFICULTY])
    for _ in range(4):
        p_NX = _sigmoid(np.einsum(f"{each},nq->nx", design_XQ, terms_NQ))
        gradient_NQ = np.einsum(f"nx,{each}->nq", weight_NX * (y_NX - p_NX), design_XQ)
        gradient_NQ -= penalty_Q * (terms_NQ - centre_Q)
        curve_NX = weight_NX * p_NX * (1 - p_NX)
        hessian_NQQ = np.einsum(
            f"nx,{each},{each.replace('q', 'r')}->nqr", curve_NX, design_XQ, design_XQ, optimize=True
        )
        step_NQ = np.linalg.solve(hessian_NQQ + np.diag(penalty_Q), gradient_NQ[..., None])[..., 0]
        terms_NQ = terms_NQ + np.clip(step_NQ, -2, 2)
    return terms_NQ


def fit(preference_MX: ArrayLike, length_MX: ArrayLike, baseline_X: ArrayLike, rounds: int = 20) -> Controlled:
    """Fit all models at once.

    Args:
        preference_MX: how far each model's answer is preferred to the baseline's: 1 it wins, 0 it loses, 1/2 a tie,
            or a judge's probability. NaN where there was no judgement.
        length_MX: of the models' answers; any unit.
        baseline_X: lengths of the baseline's answers.

    Raises:
        UserError: a preference is outside [0, 1], or a model has no judgement.
    """
    y_MX = np.asarray(preference_MX, np.float64)
    known_MX = np.isfinite(y_MX)
    if not known_MX.any(1).all():
        raise UserError(f"{int((~known_MX.any(1)).sum())} of {len(y_MX)} models have no judgement at all.")
    if (y_MX[known_MX] < 0).any() or (y_MX[known_MX] > 1).any():
        raise UserError("a preference is outside [0, 1]: 1 is a win, 0 a loss, 1/2 a tie.")
    delta_MX = np.asarray(length_MX, np.float64) - np.asarray(baseline_X, np.float64)[None]
    # As in the paper, each model's own spread: tanh then tells long from much longer for it.
    spread_M = np.where(known_MX, delta_MX, np.nan)
    sd_M = np.maximum(np.nanstd(spread_M, axis=1), 1e-9)
    longer_MX = np.tanh(np.where(known_MX, delta_MX, 0.0) / sd_M[:, None])
    weight_MX = known_MX.astype(np.float64)
    y_MX = np.where(known_MX, y_MX, 0.0)
    models, prompts = y_MX.shape
    gamma_X = np.zeros(prompts)
    terms_MQ = np.tile(np.array([0.0, 0.0, 1.0]), (models, 1))
    for _ in range(rounds):
        design_MXQ = np.stack([np.ones_like(longer_MX), longer_MX, np.broadcast_to(gamma_X, y_MX.shape)], axis=2)
        centre_Q = np.array([0.0, terms_MQ[:, 1].mean(), 1.0])
        before = terms_MQ
        terms_MQ = newton(terms_MQ, design_MXQ, weight_MX, y_MX, centre_Q)
        if models > 1:  # of one model alone, a prompt's difficulty and its luck can't be told apart
            for _ in range(4):
                p_MX = _sigmoid(terms_MQ[:, :1] + terms_MQ[:, 1:2] * longer_MX + terms_MQ[:, 2:] * gamma_X)
                slope_M1 = terms_MQ[:, 2:]
                gradient_X = (weight_MX * (y_MX - p_MX) * slope_M1).sum(0) - PROMPT * gamma_X
                curve_X = (weight_MX * p_MX * (1 - p_MX) * slope_M1**2).sum(0) + PROMPT
                gamma_X = gamma_X + np.clip(gradient_X / curve_X, -2, 2)
            gamma_X = gamma_X - gamma_X.mean()
        if np.abs(terms_MQ - before).max() < 1e-6:
            break
    predicted_MX = terms_MQ[:, :1] + terms_MQ[:, 2:] * gamma_X
    return Controlled(
        _sigmoid(predicted_MX).mean(1),
        (weight_MX * y_MX).sum(1) / weight_MX.sum(1),
        terms_MQ[:, 0],
        terms_MQ[:, 1],
        terms_MQ[:, 2],
        gamma_X,
        predicted_MX,
        np.where(known_MX, y_MX, np.nan),
        longer_MX,
    )


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
