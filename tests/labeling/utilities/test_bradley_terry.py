from __future__ import annotations

import itertools
from typing import Any

import choix
import numpy as np
import pytest

from engine.errors import UserError
from labeling.utilities import bradley_terry

# Davidson (1970), table 1: six brands of chocolate pudding; (i, j, i preferred, j preferred, no preference).
PUDDING = [
    *((1, 2, 19, 22, 16), (1, 3, 16, 19, 13), (2, 3, 19, 19, 16), (1, 4, 18, 23, 15), (2, 4, 23, 16, 18)),
    *((3, 4, 19, 20, 16), (1, 5, 20, 19, 16), (2, 5, 19, 23, 15), (3, 5, 18, 20, 15), (4, 5, 21, 19, 16)),
]


def rows(*lines: tuple[int, int, int, int, int]) -> dict[str, Any]:
    """Comparisons of one line per (left, right, left won, right won, ties), as weighted rows."""
    table = [(i, j, s, n) for i, j, *counts in lines for s, n in zip((1.0, 0.0, 0.5), counts, strict=True)]
    left, right, score, weight = zip(*table, strict=True)
    return {"left_P": left, "right_P": right, "score_P": score, "weight_P": weight}


def simulated(rng: np.random.Generator, u: np.ndarray, count: int, nu: float, first: float = 0.0) -> dict[str, Any]:
    """Judgements drawn from Davidson's model."""
    left = rng.integers(0, len(u), count)
    right = (left + rng.integers(1, len(u), count)) % len(u)
    order = rng.choice([-1, 1], count)
    d = u[left] - u[right] + first * order
    p = np.stack([np.exp(d / 2), np.exp(-d / 2), np.full(count, nu)], axis=1)
    outcome = (rng.random((count, 1)) > (p / p.sum(axis=1, keepdims=True)).cumsum(axis=1)).sum(axis=1)
    return {"left_P": left, "right_P": right, "score_P": np.array([1.0, 0.0, 0.5])[outcome], "shown_first_P": order}


def test_two_items_have_a_closed_form() -> None:
    # n wins, m losses, t ties: Davidson's maximum is log(n/m) and nu = t / sqrt(n m); Rao and Kupper's thresholds are
    # the logits of the shares. Wald variance of log(n/m) without ties: 1/n + 1/m.
    counts = rows((0, 1, 30, 20, 10))
    davidson = bradley_terry.fit(**counts, items=2)
    assert davidson.difference(0, 1)[0] == pytest.approx(np.log(1.5), abs=1e-9)
    assert np.exp(davidson.tie[0]) == pytest.approx(10 / np.sqrt(600), abs=1e-9)
    kupper = bradley_terry.fit(**counts, items=2, ties="rao_kupper")
    a, b = np.log(30 / 30), np.log(20 / 40)
    assert kupper.difference(0, 1)[0] == pytest.approx((a - b) / 2, abs=1e-9)
    assert kupper.tie[0] == pytest.approx(-(a + b) / 2, abs=1e-9)
    plain = bradley_terry.fit(**rows((0, 1, 30, 20, 0)), items=2)
    assert plain.difference(0, 1) == pytest.approx((np.log(1.5), np.sqrt(1 / 30 + 1 / 20)), abs=1e-9)


def test_agrees_with_choix() -> None:
    rng = np.random.default_rng(0)
    data = simulated(rng, rng.normal(size=8), 500, nu=0)
    del data["shown_first_P"]
    ours = bradley_terry.fit(**data, items=8)
    pairs = [(i, j) if s else (j, i) for i, j, s in zip(data["left_P"], data["right_P"], data["score_P"], strict=True)]
    theirs = choix.ilsr_pairwise(8, pairs)
    assert np.abs(ours.utility_I - (theirs - theirs.mean())).max() < 1e-6
    ours = bradley_terry.fit(**data, items=8, prior=0.7)
    theirs = choix.opt_pairwise(8, pairs, alpha=0.35, tol=1e-10)
    assert np.abs(ours.utility_I - theirs).max() < 1e-4


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_the_score_is_zero_and_the_covariance_is_its_inverse_slope(ties: Any) -> None:
    """Against an objective written out from the definitions, differentiated numerically."""
    lines = [(i - 1, j - 1, *counts) for i, j, *counts in PUDDING]
    fit = bradley_terry.fit(**rows(*lines), items=5, ties=ties)

    def loglik(x: np.ndarray) -> float:
        total, tie = 0.0, float(x[5])
        for i, j, win, loss, tied in lines:
            a, b = np.exp(x[i]), np.exp(x[j])
            if ties == "davidson":
                t = np.exp(tie) * np.sqrt(a * b)
                p, q, r = np.array([a, b, t]) / (a + b + t)
            else:
                kappa = np.exp(tie)
                p, q = a / (a + kappa * b), b / (b + kappa * a)
                r = (kappa**2 - 1) * a * b / ((a + kappa * b) * (b + kappa * a))
            total += win * np.log(p) + loss * np.log(q) + tied * np.log(r)
        return total

    x, h = np.concatenate([fit.utility_I, fit.tie]), 1e-4
    step = h * np.eye(6)
    assert loglik(x) == pytest.approx(fit.loglik, abs=1e-8)
    assert max(abs(loglik(x + e) - loglik(x - e)) / (2 * h) for e in step) < 1e-5
    hessian = np.array(
        [
            [
                (loglik(x + e + f) - loglik(x + e - f) - loglik(x - e + f) + loglik(x - e - f)) / (4 * h * h)
                for f in step
            ]
            for e in step
        ]
    )
    hessian[:5, :5] -= 1  # the sum of the utilities is free; any constant does
    assert np.abs((np.linalg.inv(-hessian)[:5, :5] - 1 / 25) - fit.covariance_II).max() < 1e-6


def test_intervals_cover() -> None:
    covered, half = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        u = np.array([1.0, 0.4, 0.0, -0.2, -1.2])
        data = simulated(rng, u, 400, nu=0.5)
        fit = bradley_terry.fit(**{**data, "shown_first_P": None}, items=5)
        low, high = fit.interval().T
        covered.append((low < u) & (u < high))
        # Shares are no counts: outcomes of one cluster are copies of one another, and only the sandwich knows.
        copies = {k: np.repeat(v, 4) for k, v in data.items() if k != "shown_first_P"}
        robust = bradley_terry.fit(**copies, items=5, ties="half", cluster_P=np.repeat(np.arange(400), 4))
        half.append((robust.interval()[:, 1] - robust.interval()[:, 0]) / 2)
    assert 0.92 < np.mean(covered) < 0.975  # 1,000 intervals of 95 %
    single = bradley_terry.fit(**{k: v for k, v in data.items() if k != "shown_first_P"}, items=5, ties="half")
    assert np.mean(half) > 0.8 * np.mean(1.96 * single.se_I)  # not the half that copies would suggest


def test_the_advantage_of_being_first_is_found_and_taken_out() -> None:
    rng = np.random.default_rng(3)
    u = np.array([1.0, 0.3, -0.3, -1.0])
    data = simulated(rng, u, 4000, nu=0.4, first=0.6)
    fit = bradley_terry.fit(**data, items=4)
    assert fit.first is not None
    assert abs(fit.first[0] - 0.6) < 3 * fit.first[1] and fit.first[1] < 0.06
    assert np.abs(fit.utility_I - u).max() < 4 * fit.se_I.max()
    # Shown unevenly, the advantage is taken for quality unless it is modelled.
    often = np.where(data["left_P"] == 3, 1, np.where(data["right_P"] == 3, -1, data["shown_first_P"]))
    d = u[data["left_P"]] - u[data["right_P"]] + 1.5 * often
    score = (rng.random(4000) < 1 / (1 + np.exp(-d))).astype(float)
    biased = bradley_terry.fit(data["left_P"], data["right_P"], score, 4)
    right = bradley_terry.fit(data["left_P"], data["right_P"], score, 4, shown_first_P=often)
    assert biased.utility_I[3] - u[3] > 0.7 and abs(right.utility_I[3] - u[3]) < 4 * right.se_I[3]


def test_order_of_rows_and_sides_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    data = simulated(rng, rng.normal(size=6), 300, nu=0.3, first=0.2)
    one = bradley_terry.fit(**data, items=6)
    shuffle = rng.permutation(300)
    other = {
        "left_P": data["right_P"][shuffle],
        "right_P": data["left_P"][shuffle],
        "score_P": 1 - data["score_P"][shuffle],
        "shown_first_P": -data["shown_first_P"][shuffle],
    }
    two = bradley_terry.fit(**other, items=6)
    assert np.abs(one.utility_I - two.utility_I).max() < 1e-9 and one.first == pytest.approx(two.first, abs=1e-9)


def test_strengths_without_a_finite_estimate_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="no chain of judgements in which c beat"):
        bradley_terry.fit([0, 1, 0], [1, 0, 2], [1, 1, 1], 3, names=["a", "b", "c"])
    with pytest.raises(UserError, match="no chain of judgements in which c, d"):
        bradley_terry.fit([0, 1, 2, 3], [1, 0, 3, 2], [1, 1, 1, 1], 4, names=["a", "b", "c", "d"])
    fit = bradley_terry.fit([0, 1, 0], [1, 0, 2], [1, 1, 1], 3, prior=1.0)
    assert np.isfinite(fit.utility_I).all() and fit.utility_I[2] < fit.utility_I[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [5], [1], 2), "outside 0..1"),
        (([0], [0], [1], 2), "of an item with itself"),
        (([0], [1], [0.7], 2), "ties='half'"),
        (([], [], [], 2), "at least one row"),
    ],
)
def test_bad_input(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bradley_terry.fit(*arguments)


def test_every_tie_model_is_the_same_without_ties() -> None:
    data = [(i, j, 1.0) for i, j in itertools.permutations(range(4), 2)] + [(0, 1, 1.0), (1, 2, 1.0), (0, 3, 1.0)]
    left, right, score = zip(*data, strict=True)
    found = [bradley_terry.fit(left, right, score, 4, ties=t).utility_I for t in ("davidson", "rao_kupper", "half")]
    assert np.abs(found[0] - found[1]).max() < 1e-9 and np.abs(found[0] - found[2]).max() < 1e-9
