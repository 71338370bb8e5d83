"""How far each annotator can be trusted, and what the answers are worth once that is known.

Every annotator ranks by the same utilities, each with a reliability and a pull towards what is shown first:

    worth of answer i to annotator a  =  b_a * u_i + g_a * z_i

inside Plackett-Luce with ties. `b_a` is 1 for the typical annotator, 0 for one who ranks at random, negative for one
who ranks upside down: the listwise form of noisy Bradley-Terry (Bugakova, Fedorova, Gusev and Drutsa 2019, "Aggregation
of pairwise comparisons with reduction of biases"; Chen et al. 2013, "Pairwise ranking aggregation in a crowdsourced
setting"). `z` runs from +1/2 for the position shown first to -1/2 for the last, so `g_a` is the log-odds by which first
beats last between equals.

Utilities have a normal prior, by prompt. Reliabilities are estimated with the utilities integrated out (EM, E-step by
Laplace's approximation), because a joint maximum would believe everyone: with few rankings of a prompt, each one pulls
the consensus towards itself.

Legend: R rankings, K columns, S steps, I items, A annotators, B blocks (prompts), W items of the largest block, L draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine import seeds
from labeling.utilities.bradley_terry import Bools, Floats, Ints
from labeling.utilities.plackett_luce import Moments, Steps, Unranked, moments, take_apart

Z95 = 1.959963984540054
# Priors, in log-odds. They decide where the data say nothing: one annotator a prompt, one ranking an annotator.
RELIABILITY_SD = 1.0
POSITION_SD = 0.5
TIE_SD = 3.0
SPREAD = 1.5
SPREAD_RANGE = (0.1, 4.0)
MOST_STEPS = 50_000


@dataclass(frozen=True)
class Judgements:
    """Rankings as arrays.

    Attributes:
        item_RK: item numbers in [0, len(block_I)), -1 in unused places.
        rank_RK: 1 is best, equal ranks are ties, 0 is not ranked.
        shown_RK: the position at which the answer was seen, from 0; -1 unknown.
        annotator_R: annotator numbers in [0, annotators).
        block_I: the prompt each item answers, ascending.
    """

    item_RK: Ints
    rank_RK: Ints
    shown_RK: Ints
    annotator_R: Ints
    block_I: Ints
    annotators: int

    def about(self, chosen_B: Bools) -> Judgements:
        """The rankings of these prompts alone, prompts and items numbered anew."""
        chosen_I = chosen_B[self.block_I]
        rows = chosen_I[self.item_RK.max(axis=1)]
        item_RK = np.where(self.item_RK >= 0, (np.cumsum(chosen_I) - 1)[self.item_RK], -1)
        return Judgements(
            item_RK[rows],
            self.rank_RK[rows],
            self.shown_RK[rows],
            self.annotator_R[rows],
            (np.cumsum(chosen_B) - 1)[self.block_I[chosen_I]],
            self.annotators,
        )

    @property
    def position_RK(self) -> Floats:
        """+1/2 first to -1/2 last among the answers of the ranking; 0 where unknown."""
        known = (self.shown_RK >= 0) & (self.item_RK >= 0)
        count_R1 = known.sum(axis=1, keepdims=True)
        order = np.argsort(np.argsort(np.where(known, self.shown_RK, np.iinfo(np.int64).max), axis=1), axis=1)
        return np.where(known & (count_R1 > 1), 0.5 - order / np.maximum(count_R1 - 1, 1), 0.0)


@dataclass(frozen=True)
class Reliability:
    """What was learnt about answers and annotators. Standard errors are of the marginal likelihood.

    Attributes:
        utility_I: log-odds on the scale of the typical annotator, centred on zero within each prompt.
        covariance_BWW: of a prompt's utilities, in the order of its items; unused places are zero.
        place_I: the place of an item in its block.
        slope_A, slope_se_A: reliability.
        position_A, position_se_A: pull towards the first position.
        position, position_se: of the pool of annotators.
        log_delta: tie parameters by size of group in `sizes`; the first is 0.
        spread: standard deviation of utilities within a prompt.
        estimated: reliabilities come from the data; False where no prompt was judged by two annotators.
        steps: EM steps taken.
    """

    utility_I: Floats
    covariance_BWW: Floats
    block_I: Ints
    place_I: Ints
    slope_A: Floats
    slope_se_A: Floats
    position_A: Floats
    position_se_A: Floats
    position: float
    position_se: float
    sizes: tuple[int, ...]
    log_delta: Floats
    spread: float
    estimated: bool
    steps: int

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """`u_i - u_j` of two answers to one prompt, and its standard deviation."""
        c = self.covariance_BWW[self.block_I[i]]
        a, b = self.place_I[i], self.place_I[j]
        return float(self.utility_I[i] - self.utility_I[j]), float(np.sqrt(max(c[a, a] + c[b, b] - 2 * c[a, b], 0.0)))

    @property
    def unreliable_A(self) -> Bools:
        """Annotators whose whole 95 % interval lies below half of the typical one's reliability."""
        return self.estimated & (self.slope_A + Z95 * self.slope_se_A < 0.5)

    def accuracy(self, slope: float) -> float:
        """The chance that an annotator of this reliability prefers the better of two answers drawn at random."""
        x, w = np.polynomial.hermite_e.hermegauss(100)
        gap = np.abs(x) * np.sqrt(2) * self.spread
        return float((w / w.sum()) @ (1 / (1 + np.exp(-slope * gap))))


@dataclass
class _Estimates:
    utility_I: Floats
    slope_A: Floats
    position_A: Floats
    position: float
    log_delta: Floats
    spread: float
    estimated: bool
    overlap: bool


def fit(
    judgements: Judgements,
    *,
    unranked: Unranked = "below",
    weigh: bool = True,
    position: bool = True,
    pinned: Mapping[int, float] | None = None,
    draws: int = 16,
    most_blocks: int = 2_000,
    most: int = 200,
    tolerance: float = 1e-3,
) -> Reliability:
    """Utilities of answers and reliabilities of annotators.

    Args:
        unranked: see `plackett_luce.take_apart`.
        weigh: estimate reliabilities; otherwise everyone counts the same.
        position: estimate and take out the pull towards what was shown first.
        pinned: annotators whose reliability is known (a gold key: high).
        draws: of the utilities in the E-step, in antithetic pairs.
        most_blocks: prompts that reliabilities are estimated on, evenly spread; utilities use all.
        most, tolerance: of EM; it ends when no reliability moves further than this.
    """
    known = pinned or {}
    several_B = _annotators_per_block(judgements) > 1
    overlap = bool(several_B.any())
    free_A = np.array([a not in known for a in range(judgements.annotators)])
    whole = _Problem.of(judgements, unranked, position)
    chosen_B = _evenly(several_B if overlap else ~several_B, most_blocks)
    part = _Problem.of(judgements.about(chosen_B), unranked, position, whole.steps.sizes)
    state = _Estimates(
        np.zeros(len(part.layout.block_I)),
        np.array([known.get(a, 1.0) for a in range(judgements.annotators)]),
        np.zeros(judgements.annotators),
        0.0,
        np.zeros(len(whole.steps.sizes)),
        SPREAD,
        weigh and overlap,
        overlap,
    )
    count_A = np.bincount(judgements.annotator_R, minlength=judgements.annotators) * free_A
    se_A2 = np.full((judgements.annotators, 2), np.inf)
    before = np.zeros(0)
    taken = 0
    while taken < most:
        taken += 1
        covariance = _laplace(part, state)
        se_A2 = _maximise(part, state, covariance, free_A, draws)
        if state.estimated:
            se_A2[:, 0] /= _rescale(state, count_A, free_A)
        now = np.concatenate([state.slope_A, state.position_A, state.log_delta, [state.spread]])
        if len(before) and np.abs(now - before).max() < tolerance:
            break
        before = now
    if not position:
        se_A2[:, 1] = 0.0
    state.utility_I = np.zeros(len(judgements.block_I))
    covariance = _laplace(whole, state)
    known_A = np.clip(1 / np.maximum(se_A2[:, 1], 1e-6) ** 2 - 1 / POSITION_SD**2, 0, None)
    return Reliability(
        state.utility_I,
        covariance,
        judgements.block_I,
        whole.layout.place_I,
        state.slope_A,
        se_A2[:, 0] if state.estimated else np.full(judgements.annotators, RELIABILITY_SD),
        state.position_A,
        se_A2[:, 1],
        state.position,
        float(1 / np.sqrt(known_A.sum())) if position and known_A.any() else 0.0,
        whole.steps.sizes,
        state.log_delta,
        state.spread,
        state.estimated,
        taken,
    )


@dataclass(frozen=True)
class _Layout:
    """Where each item stands in the padded (B, W) form."""

    block_I: Ints
    place_I: Ints
    blocks: int
    width: int
    used_BW: Bools

    @staticmethod
    def of(block_I: Ints) -> _Layout:
        count_B = np.bincount(block_I)
        start_B = np.concatenate([[0], np.cumsum(count_B)[:-1]])
        place_I = np.arange(len(block_I)) - start_B[block_I]
        width = int(count_B.max())
        return _Layout(block_I, place_I, len(count_B), width, np.arange(width) < count_B[:, None])

    def pad(self, value_I: Floats) -> Floats:
        padded = np.zeros((self.blocks, self.width))
        padded[self.block_I, self.place_I] = value_I
        return padded

    def flat(self, value_BW: Floats) -> Floats:
        return value_BW[self.block_I, self.place_I]


@dataclass(frozen=True)
class _Problem:
    """Rankings taken apart, with what belongs to each step."""

    steps: Steps
    z_SK: Floats
    annotator_S: Ints
    layout: _Layout

    @staticmethod
    def of(
        judgements: Judgements, unranked: Unranked, position: bool, sizes: tuple[int, ...] | None = None
    ) -> _Problem:
        steps = take_apart(judgements.item_RK, judgements.rank_RK, unranked, sizes)
        z_SK = np.where(steps.open_SK, judgements.position_RK[steps.ranking_S], 0.0) * position
        return _Problem(steps, z_SK, judgements.annotator_R[steps.ranking_S], _Layout.of(judgements.block_I))

    def repeat(self, times: int) -> _Problem:
        return _Problem(
            self.steps.repeat(times), np.tile(self.z_SK, (times, 1)), np.tile(self.annotator_S, times), self.layout
        )

    def moments(self, state: _Estimates, utility_SK: Floats) -> Moments:
        slope_S1, pull_S1 = state.slope_A[self.annotator_S][:, None], state.position_A[self.annotator_S][:, None]
        return moments(self.steps, slope_S1 * utility_SK + pull_S1 * self.z_SK, state.log_delta)


def _laplace(problem: _Problem, state: _Estimates) -> Floats:
    """Move `state.utility_I` to its posterior mode, prompt by prompt; returns the covariances there (B, W, W)."""
    steps, layout = problem.steps, problem.layout
    slope_S = state.slope_A[problem.annotator_S]
    size = layout.blocks * layout.width
    flat_SK = layout.block_I[steps.item_SK] * layout.width + layout.place_I[steps.item_SK]
    pair_SKK = flat_SK[:, :, None] * layout.width + layout.place_I[steps.item_SK][:, None, :]
    eye = np.eye(layout.width) / state.spread**2
    block_S = layout.block_I[steps.item_SK.max(axis=1)] if len(steps.item_SK) else np.zeros(0, np.int64)

    def at(utility_I: Floats) -> tuple[Floats, Moments]:
        m = problem.moments(state, utility_I[steps.item_SK])
        value_B = np.bincount(block_S, m.loglik_S, layout.blocks)
        return value_B - 0.5 * (layout.pad(utility_I) ** 2).sum(axis=1) / state.spread**2, m

    value_B, m = at(state.utility_I)
    hessian_BWW = np.tile(eye, (layout.blocks, 1, 1))
    for _ in range(50):
        gradient = np.bincount(flat_SK.ravel(), (slope_S[:, None] * m.residual_SK).ravel(), size)
        gradient_BW = gradient.reshape(layout.blocks, layout.width) - layout.pad(state.utility_I) / state.spread**2
        weights = (slope_S[:, None, None] ** 2 * m.covariance_SKK).ravel()
        hessian = np.bincount(pair_SKK.ravel(), weights, size * layout.width)
        hessian_BWW = hessian.reshape(layout.blocks, layout.width, layout.width) + eye
        move_BW = np.linalg.solve(hessian_BWW, gradient_BW[:, :, None])[:, :, 0] * layout.used_BW
        moved_I = layout.flat(move_BW)
        after_B, m = at(state.utility_I + moved_I)
        for _ in range(20):  # halve the step of the prompts that did not rise
            worse_B = after_B < value_B - 1e-9
            if not worse_B.any():
                break
            moved_I = np.where(worse_B[layout.block_I], moved_I / 2, moved_I)
            after_B, m = at(state.utility_I + moved_I)
        state.utility_I, value_B = state.utility_I + moved_I, after_B
        if np.abs(moved_I).max() < 1e-6:
            break
    covariance = np.linalg.inv(hessian_BWW)
    return covariance * (layout.used_BW[:, :, None] & layout.used_BW[:, None, :])


def _maximise(problem: _Problem, state: _Estimates, covariance_BWW: Floats, free_A: Bools, draws: int) -> Floats:
    """One Newton step of reliabilities, pulls and ties on the expected log-likelihood, in place; (A, 2) errors."""
    steps, layout, z_SK, annotator_S = problem.steps, problem.layout, problem.z_SK, problem.annotator_S
    annotators, sizes = len(state.slope_A), len(steps.sizes)
    root_BWW = np.linalg.cholesky(covariance_BWW + 1e-12 * np.eye(layout.width))
    half_LBW = seeds.generator("reliability", draws).standard_normal((max(draws // 2, 1), layout.blocks, layout.width))
    offset_LBW = np.einsum("bij,lbj->lbi", root_BWW, np.concatenate([half_LBW, -half_LBW]))
    utility_LI = state.utility_I + offset_LBW[:, layout.block_I, layout.place_I]
    gradient_S2, hessian_A3 = np.zeros((len(annotator_S), 2)), np.zeros((annotators, 3))
    tie_gradient, tie_hessian = np.zeros(sizes), np.zeros((sizes, sizes))
    seen_SD = np.eye(sizes)[steps.size_S]
    total = len(utility_LI)
    together = max(1, MOST_STEPS // max(len(annotator_S), 1))  # draws at once: few numbers, few calls
    for first in range(0, total, together):
        some_LI = utility_LI[first : first + together]
        copies = problem.repeat(len(some_LI))
        u_SK = np.where(copies.steps.open_SK, some_LI[:, steps.item_SK].reshape(copies.z_SK.shape), 0.0)
        m = copies.moments(state, u_SK)
        gradient_S2[:, 0] += (m.residual_SK * u_SK).sum(axis=1).reshape(len(some_LI), -1).sum(axis=0)
        gradient_S2[:, 1] += (m.residual_SK * copies.z_SK).sum(axis=1).reshape(len(some_LI), -1).sum(axis=0)
        spread_u = np.einsum("skl,sl->sk", m.covariance_SKK, u_SK)
        spread_z = np.einsum("skl,sl->sk", m.covariance_SKK, copies.z_SK)
        for q, (left, right) in enumerate(((u_SK, spread_u), (u_SK, spread_z), (copies.z_SK, spread_z))):
            hessian_A3[:, q] += np.bincount(copies.annotator_S, (left * right).sum(axis=1), annotators)
        tie_gradient += len(some_LI) * seen_SD.sum(axis=0) - m.size_SD.sum(axis=0)
        tie_hessian += np.diag(m.size_SD.sum(axis=0)) - m.size_SD.T @ m.size_SD
    gradient_S2 /= total
    gradient_A2 = np.stack([np.bincount(annotator_S, gradient_S2[:, q], annotators) for q in range(2)], axis=1)
    h = hessian_A3 / total
    # By Fisher's identity the expected score is the score of the marginal likelihood; its square over rankings is the
    # observed information, missing utilities accounted for.
    ranking_of, inverse = np.unique(steps.ranking_S, return_inverse=True)
    score_R2 = np.stack([np.bincount(inverse, gradient_S2[:, q], len(ranking_of)) for q in range(2)], axis=1)
    annotator_R = np.zeros(len(ranking_of), np.int64)
    annotator_R[inverse] = annotator_S
    information = np.zeros((annotators, 2, 2))
    np.add.at(information, annotator_R, score_R2[:, :, None] * score_R2[:, None, :])
    prior = np.array([1 / RELIABILITY_SD**2, 1 / POSITION_SD**2])
    se_A2 = np.sqrt(np.linalg.inv(information + np.diag(prior))[:, [0, 1], [0, 1]])

    gradient_A2[:, 0] -= prior[0] * (state.slope_A - 1)
    gradient_A2[:, 1] -= prior[1] * (state.position_A - state.position)
    hessian_A22 = np.stack([h[:, 0] + prior[0], h[:, 1], h[:, 1], h[:, 2] + prior[1]], axis=1).reshape(-1, 2, 2)
    move_A2 = np.clip(np.linalg.solve(hessian_A22, gradient_A2[:, :, None])[:, :, 0], -0.5, 0.5)
    if state.estimated:
        state.slope_A = np.where(free_A, state.slope_A + move_A2[:, 0], state.slope_A)
    if z_SK.any():
        state.position_A = state.position_A + move_A2[:, 1]
        # What the annotators' pulls vary around; those whose positions are unknown say nothing about it.
        seen_A = np.bincount(annotator_S, np.abs(z_SK).sum(axis=1), annotators) > 0
        weight_A = seen_A / (se_A2[:, 1] ** 2 + POSITION_SD**2)
        state.position = float(weight_A @ state.position_A / weight_A.sum())
    if sizes > 1:
        g = tie_gradient[1:] / total - state.log_delta[1:] / TIE_SD**2
        hessian = tie_hessian[1:, 1:] / total + np.eye(sizes - 1) / TIE_SD**2
        state.log_delta[1:] += np.clip(np.linalg.solve(hessian, g), -1, 1)
    if state.overlap:
        variance_BW = np.einsum("bii->bi", covariance_BWW)
        square = (layout.pad(state.utility_I) ** 2 + variance_BW)[layout.used_BW]
        state.spread = float(np.clip(np.sqrt(square.mean()), *SPREAD_RANGE))
    return se_A2


def _rescale(state: _Estimates, count_A: Floats | Ints, free_A: Bools) -> float:
    """Give the typical annotator a reliability of 1: one scale is shared by utilities and reliabilities.

    Typical is the mean weighted by rankings and by reliability itself, which those who rank at random do not move.

    Within EM this moves along the ridge that EM itself is slow on (Liu, Rubin and Wu 1998, parameter expansion).
    """
    trusted_A = count_A * np.clip(state.slope_A, 0, None)
    if trusted_A.sum() < 0.1 * count_A.sum():
        return 1.0  # nobody agrees with anybody: there is no typical annotator
    scale = float(trusted_A @ state.slope_A / trusted_A.sum())
    state.slope_A = np.where(free_A, state.slope_A / scale, state.slope_A)
    state.utility_I = state.utility_I * scale
    state.spread = float(np.clip(state.spread * scale, *SPREAD_RANGE))
    return scale


def _annotators_per_block(judgements: Judgements) -> Ints:
    block_R = judgements.block_I[judgements.item_RK.max(axis=1)]
    pairs = np.unique(np.stack([block_R, judgements.annotator_R]), axis=1)
    return np.bincount(pairs[0], minlength=int(judgements.block_I[-1]) + 1)


def _evenly(wanted_B: Bools, most: int) -> Bools:
    """At most this many of the wanted blocks, evenly spread."""
    where = np.flatnonzero(wanted_B)
    if len(where) > most:
        where = where[np.linspace(0, len(where) - 1, most).astype(np.int64)]
    chosen = np.zeros(len(wanted_B), np.bool_)
    chosen[where] = True
    return chosen
