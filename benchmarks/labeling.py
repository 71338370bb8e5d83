"""Labels judged: recovery of known utilities, unreliable annotators, position bias, real judgements, what to ask.

    python -m benchmarks.labeling --json [--data ../shared/data] [--seeds 20] [--quick]

Annotators are simulated everywhere; `alpaca` is 28,995 judgements by GPT-4 Turbo of 58 models (AlpacaEval), and `server`
is a real Argilla. Without the data, or with a part left out, a claim's value is null. Prints one JSON object with a claim a
line of proof; minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import labeling_argilla
from engine import seeds
from labeling.ask.information import choose
from labeling.utilities import bradley_terry, graded_pairs, plackett_luce, reliability
from labeling.utilities.bradley_terry import Floats, Ints

Claim = tuple[str, Any, str, bool]


def correlation(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def spearman(a: Floats, b: Floats) -> float:
    def ranks(x: Floats) -> Floats:
        _, inverse, count = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[inverse]

    return correlation(ranks(a), ranks(b))


def interval(values: Floats | list[float], draws: int = 4000) -> list[float]:
    """The mean and its 95 % bootstrap interval."""
    x = np.asarray(values, np.float64)
    means = x[seeds.generator("benchmark", len(x)).integers(0, len(x), (draws, len(x)))].mean(axis=1)
    return [round(float(v), 5) for v in (x.mean(), *np.quantile(means, [0.025, 0.975]))]


# -- recovery ----------------------------------------------------------------------------------------------------------


def top_lists(rng: np.random.Generator, u: Floats, count: int, top: int) -> tuple[Ints, Ints]:
    order = np.argsort(-(u + rng.gumbel(size=(count, len(u)))), axis=1)
    rank = np.zeros((count, len(u)), np.int64)
    np.put_along_axis(rank, order[:, :top], np.arange(1, top + 1), axis=1)
    return np.tile(np.arange(len(u)), (count, 1)), rank


def reachable(rng: np.random.Generator, u: Floats, count: int, top: int, draws: int = 1000) -> float:
    """The correlation to expect of an estimator at the Cramer-Rao bound: only errors across `u` lower it."""
    steps = plackett_luce.take_apart(*top_lists(rng, u, draws, top))
    information = plackett_luce.moments(steps, u[steps.item_SK], np.zeros(1)).covariance_SKK.sum(axis=0) / draws
    along = [np.ones(len(u)) / np.sqrt(len(u)), (u - u.mean()) / np.linalg.norm(u - u.mean())]
    across = np.eye(len(u)) - sum(np.outer(e, e) for e in along)
    error = np.trace(across @ np.linalg.pinv(information) @ across) / count
    return float(1 - error / (2 * ((u - u.mean()) ** 2).sum()))


def recovery(runs: int) -> tuple[dict[str, Any], list[Claim]]:
    found: dict[str, Any] = {}
    claims: list[Claim] = []
    for count, bar in ((500, 0.99), (5000, 0.999)):
        r: list[float] = []
        bound: list[float] = []
        covered: list[float] = []
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            u = rng.normal(size=10)
            u -= u.mean()
            fit = plackett_luce.fit(*top_lists(rng, u, count, 4), 10)
            r.append(correlation(fit.utility_I, u))
            bound.append(reachable(rng, u, count, 4))
            low, high = fit.interval().T
            covered.append(float(((low < u) & (u < high)).mean()))
        found[f"top4_of_10_{count}"] = {
            **{"r": interval(r), "worst_r": round(min(r), 5), "share_above_bar": float(np.mean(np.array(r) >= bar))},
            "r_at_the_cramer_rao_bound": round(float(np.mean(bound)), 5),
            "intervals_cover": round(float(np.mean(covered)), 4),
        }
        mean = interval(r)[0]
        claims.append((f"recovery_{count}", mean, f"mean r >= {bar} over {runs} seeds", mean >= bar))
    gap = 0.0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        left = rng.integers(0, 8, 500)
        right = (left + rng.integers(1, 8, 500)) % 8
        outcome = rng.choice(3, 500, p=[0.45, 0.35, 0.2])
        pairs = bradley_terry.fit(left, right, np.array([1, 0, 0.5])[outcome], 8)
        rank = np.array([[1, 2], [2, 1], [1, 1]])[outcome]
        lists = plackett_luce.fit(np.stack([left, right], axis=1), rank, 8)
        gap = max(gap, float(np.abs(pairs.utility_I - lists.utility_I).max()))
    claims.append(("two_answers_are_bradley_terry", gap, "<= 1e-6", gap <= 1e-6))
    return found, claims


# -- annotators --------------------------------------------------------------------------------------------------------


def judged(
    rng: np.random.Generator, prompts: int, slopes: list[float], pull: float = 0.0
) -> tuple[Floats, reliability.Judgements]:
    """Rankings of 4 answers a prompt by everyone; the true utilities (prompts, 4)."""
    a = len(slopes)
    u = rng.normal(0, 1.5, (prompts, 4))
    shown = np.argsort(rng.random((prompts, a, 4)), axis=2)
    worth = np.array(slopes)[:, None] * u[:, None, :] + pull * (0.5 - shown / 3) + rng.gumbel(size=shown.shape)
    rank = np.argsort(np.argsort(-worth, axis=2), axis=2) + 1
    item = np.broadcast_to((np.arange(prompts)[:, None] * 4 + np.arange(4))[:, None, :], rank.shape)
    return u - u.mean(axis=1, keepdims=True), reliability.Judgements(
        item.reshape(-1, 4),
        rank.reshape(-1, 4),
        shown.reshape(-1, 4),
        np.tile(np.arange(a), prompts),
        np.repeat(np.arange(prompts), 4),
        a,
    )


def annotators(runs: int) -> tuple[dict[str, Any], list[Claim]]:
    exact = wrong = 0
    over_ranks: list[float] = []
    over_equal: list[float] = []
    for seed in range(runs):
        u, data = judged(np.random.default_rng(seed), 40, [1.0, 1, 1, 1, 0, 0])
        fit = reliability.fit(data)
        exact += fit.unreliable_A.tolist() == [False] * 4 + [True] * 2
        wrong += int(fit.unreliable_A[:4].sum())
        mean_rank = -data.rank_RK.reshape(40, 6, 4).mean(axis=1)
        equal = reliability.fit(data, weigh=False)
        ours = correlation(fit.utility_I, u)
        over_ranks.append(ours - correlation(mean_rank, u))
        over_equal.append(ours - correlation(equal.utility_I, u))
    found = {
        "two_of_six_random": {
            "runs_in_which_exactly_both_are_found": exact,
            "good_annotators_accused": wrong,
            "r_gain_over_mean_rank": interval(over_ranks),
            "r_gain_over_plackett_luce_with_equal_weights": interval(over_equal),
            "runs_won_against_mean_rank": int((np.array(over_ranks) > 0).sum()),
        }
    }
    gain = interval(over_ranks)
    return found, [
        (
            "random_annotators_found",
            exact / runs,
            f"exactly the 2 of 6, in >= 95 % of {runs} seeds",
            exact >= 0.95 * runs,
        ),
        ("weighing_beats_averaging", gain, "whole paired interval of the gain in r above 0", gain[1] > 0),
    ]


def position(runs: int) -> tuple[dict[str, Any], list[Claim]]:
    found: dict[str, Any] = {}
    for pull in (0.0, 0.5, 1.0):
        estimate: list[float] = []
        detected: list[bool] = []
        covered: list[bool] = []
        gain: list[float] = []
        for seed in range(runs):
            u, data = judged(np.random.default_rng(1000 + seed), 60, [1.0, 1, 1], pull)
            fit = reliability.fit(data)
            estimate.append(fit.position)
            detected.append(abs(fit.position) > reliability.Z95 * fit.position_se)
            covered.append(abs(fit.position - pull) < reliability.Z95 * fit.position_se)
            gain.append(correlation(fit.utility_I, u) - correlation(reliability.fit(data, position=False).utility_I, u))
        found[f"position_bias_{pull}"] = {
            "estimate": interval(estimate),
            "detected": float(np.mean(detected)),
            "interval_covers": float(np.mean(covered)),
            "r_gain_of_correction": interval(gain),
        }
    planted, none = found["position_bias_1.0"], found["position_bias_0.0"]
    return found, [
        (
            "position_bias_detected",
            planted["detected"],
            "planted 1.0 found in >= 95 % of runs",
            planted["detected"] >= 0.95,
        ),
        (
            "position_bias_not_imagined",
            none["detected"],
            "found in <= 10 % where there is none",
            none["detected"] <= 0.10,
        ),
        (
            "position_bias_corrected",
            planted["r_gain_of_correction"],
            "whole paired interval of the gain in r above 0",
            planted["r_gain_of_correction"][1] > 0,
        ),
    ]


# -- real judgements ---------------------------------------------------------------------------------------------------


def alpaca(data: Path, runs: int) -> tuple[dict[str, Any], list[Claim]]:
    import polars as pl

    table = pl.read_parquet(data / "alpaca_eval" / "preferences.parquet")
    table = table.filter(pl.col("model_1") != pl.col("model_2"))  # the baseline against itself says nothing
    names: list[str] = sorted({*table["model_1"].to_list(), *table["model_2"].to_list()})
    number = {name: i for i, name in enumerate(names)}
    left: Ints = np.array([number[m] for m in table["model_2"].to_list()], np.int64)
    right: Ints = np.array([number[m] for m in table["model_1"].to_list()], np.int64)
    score: Floats = table["preference"].to_numpy() - 1.0
    cluster = np.unique(table["instruction"].to_numpy(), return_inverse=True)[1]
    base = int(right[0])
    rate = np.array([score[left == i].mean() if i != base else 0.5 for i in range(len(names))])

    def fit(rows: Any) -> bradley_terry.Strengths:
        return bradley_terry.fit(
            left[rows], right[rows], score[rows], len(names), ties="half", cluster_P=cluster[rows], names=names
        )

    every = np.arange(len(score))
    best = min(_timed(lambda: bradley_terry.fit(left, right, score, len(names), ties="half")) for _ in range(5))
    best_clustered = min(_timed(lambda: fit(every)) for _ in range(5))
    whole = fit(every)
    agreement = spearman(whole.utility_I, rate)
    others = np.array([i for i in range(len(names)) if i != base])
    gap_I = whole.utility_I[others] - whole.utility_I[base]
    # Does an interval from some instructions hold the estimate from the others? Half of them each, both sides unsure.
    covered: list[float] = []
    tenth: list[float] = []
    tenth_graded: list[float] = []
    ceiling: list[float] = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        half = np.isin(cluster, rng.permutation(cluster.max() + 1)[: (cluster.max() + 1) // 2])
        one, two = fit(half), fit(~half)
        inside: list[bool] = []
        for i in others:
            (a, sa), (b, sb) = one.difference(int(i), base), two.difference(int(i), base)
            inside.append(abs(a - b) < reliability.Z95 * np.hypot(sa, sb))
        covered.append(float(np.mean(inside)))
        some = rng.permutation(len(score))[: len(score) // 10]
        part = bradley_terry.fit(left[some], right[some], score[some], len(names), ties="half", prior=1e-3)
        tenth.append(spearman(part.utility_I, rate))
        if seed < 10:
            y = graded_pairs.log_odds(score[some])
            by_how_much = graded_pairs.fit(left[some], right[some], y, len(names), cluster[some])
            tenth_graded.append(spearman(by_how_much.utility_I, rate))
            rates = [np.array([score[side & (left == i)].mean() for i in others]) for side in (half, ~half)]
            ceiling.append(spearman(*rates))
    closed = float(np.abs(gap_I - np.log(rate[others] / (1 - rate[others]))).max())
    found = {
        "models": len(names),
        "judgements": len(score),
        "seconds": round(best, 4),
        "seconds_with_clustered_intervals": round(best_clustered, 4),
        "spearman_with_win_rate": agreement,
        "largest_gap_to_log_odds_of_win_rate": closed,
        "spearman_with_a_tenth_of_the_pairs": interval(tenth),
        "worst_spearman_with_a_tenth": round(min(tenth), 5),
        "spearman_with_a_tenth_graded": interval(tenth_graded),
        "worst_spearman_with_a_tenth_graded": round(min(tenth_graded), 5),
        "spearman_of_win_rates_on_one_half_and_the_other": interval(ceiling),
        "intervals_of_half_cover_the_other_half": interval(covered),
    }
    cover, mean = float(np.mean(covered)), float(np.mean(tenth_graded))
    return found, [
        ("alpaca_spearman", agreement, ">= .99", agreement >= 0.99),
        (
            "alpaca_tenth_wins_alone",
            interval(tenth),
            f"Bradley-Terry, mean Spearman >= .97 over {runs} draws of 10 %",
            float(np.mean(tenth)) >= 0.97,
        ),
        ("alpaca_tenth", interval(tenth_graded), "graded, mean Spearman >= .97 over 10 draws of 10 %", mean >= 0.97),
        ("alpaca_intervals_cover", cover, "95 % intervals hold .92 to .98", 0.92 <= cover <= 0.98),
        ("alpaca_speed", best_clustered, "< 1 s with intervals", best_clustered < 1),
    ]


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# -- what to ask -------------------------------------------------------------------------------------------------------

BATCH, LABELS = 20, 360  # at most one pair of a prompt, and AlpacaEval has 375 to learn from


def learn(x_PQ: Floats, y_P: Floats, prior: float) -> tuple[Floats, Floats]:
    """Bayesian logistic regression by Laplace: the mode and a root of the covariance there, (Q,), (Q, Q)."""
    size = x_PQ.shape[1]

    def objective(w: Floats) -> tuple[float, Floats, Floats]:
        d = x_PQ @ w
        p = np.exp(-np.logaddexp(0, -d))
        value = float((y_P * d - np.logaddexp(0, d)).sum()) - 0.5 * prior * float(w @ w)
        return value, x_PQ.T @ (y_P - p) - prior * w, -(x_PQ.T * (p * (1 - p))) @ x_PQ - prior * np.eye(size)

    mode, hessian, _ = bradley_terry.newton(objective, np.zeros(size), tolerance=1e-6)
    return mode, np.linalg.cholesky(np.linalg.inv(-hessian))


def curve(
    how: str,
    feature_BKQ: Floats,
    utility_BK: Floats,
    noise: float,
    prior: float,
    seed: int,
) -> Floats:
    """Accuracy on pairs of held-out prompts after 0, 20, 40, ... labels asked for by this rule.

    Args:
        feature_BKQ: what the learner sees of each answer.
        utility_BK: what annotators see, in log-odds.
        noise: share of labels that are a coin's.
    """
    rng = np.random.default_rng(seed)
    blocks, answers, _ = feature_BKQ.shape
    order = rng.permutation(blocks)
    held, pool = order[: blocks // 4], order[blocks // 4 :]
    first_P, second_P = (
        np.array(side) for side in zip(*[(i, j) for i in range(answers) for j in range(i)], strict=True)
    )
    test_x = (feature_BKQ[held][:, first_P] - feature_BKQ[held][:, second_P]).reshape(-1, feature_BKQ.shape[2])
    test_better = (utility_BK[held][:, first_P] > utility_BK[held][:, second_P]).ravel()
    pairs_per_prompt = len(first_P)
    pair_x = (feature_BKQ[pool][:, first_P] - feature_BKQ[pool][:, second_P]).reshape(-1, feature_BKQ.shape[2])
    gap = (utility_BK[pool][:, first_P] - utility_BK[pool][:, second_P]).ravel()
    group = np.repeat(np.arange(len(pool)), pairs_per_prompt)
    # One answer a pair, the same whichever rule asks: rules differ by what they ask, not by luck.
    coin = rng.random(len(gap)) < noise
    p = np.where(coin, 0.5, 1 / (1 + np.exp(-gap)))
    says = (rng.random(len(gap)) < p).astype(np.float64)
    open_B = np.ones(len(pool), np.bool_)
    asked: list[int] = []
    accuracy: list[float] = []
    while True:
        mode, root = learn(pair_x[asked], says[asked], prior)
        accuracy.append(float(((test_x @ mode > 0) == test_better).mean()))
        if len(asked) >= LABELS:
            return np.array(accuracy)
        free = np.flatnonzero(open_B[group])
        if how == "random":
            prompts = rng.permutation(np.flatnonzero(open_B))[:BATCH]
            picked = prompts * pairs_per_prompt + rng.integers(0, pairs_per_prompt, len(prompts))
        elif how == "max_min":  # the answers thought best and worst: the baseline of ActiveUltraFeedback
            prompts = rng.permutation(np.flatnonzero(open_B))[:BATCH]
            worth_BK = feature_BKQ[pool][prompts] @ mode
            ends = np.stack([worth_BK.argmax(axis=1), worth_BK.argmin(axis=1)], axis=1)
            key = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(first_P, second_P, strict=True))}
            picked = [
                int(b) * pairs_per_prompt + key[max(i, j), min(i, j)] if i != j else int(b) * pairs_per_prompt
                for b, (i, j) in zip(prompts, ends.tolist(), strict=True)
            ]
        else:
            x = pair_x[free]
            picks = choose(x @ mode, x @ root, BATCH, group_P=group[free])
            picked = [int(free[pick.pair]) for pick in picks]
        asked += [int(k) for k in picked]
        open_B[group[asked]] = False


def labels_needed(curves: Floats, target: float) -> float:
    """Labels at which the mean curve (runs, checks) reaches the target for good, interpolated; infinite if never."""
    mean = curves.mean(axis=0)
    for k in range(len(mean)):
        if (mean[k:] >= target - 1e-12).all():
            if k == 0:
                return 0.0
            rise = mean[k] - mean[k - 1]
            return BATCH * (k - 1 + (float((target - mean[k - 1]) / rise) if rise > 0 else 1.0))
    return float("inf")


def compare(make: Callable[[int], tuple[Floats, Floats]], noise: float, prior: float, runs: int) -> dict[str, Any]:
    """Labels each rule needs for the accuracy that random reaches at the end, as a share of random's."""
    found: dict[str, Floats] = {}
    for how in ("random", "max_min", "information"):
        found[how] = np.stack([curve(how, *make(seed), noise, prior, seed) for seed in range(runs)])
    rng = seeds.generator("benchmark", "ask")
    result: dict[str, Any] = {"labels": LABELS, "seeds": runs}
    for how, curves in found.items():
        share = [labels_needed(curves, float(found["random"][:, -1].mean())) / LABELS]
        for _ in range(1000):
            rows = rng.integers(0, runs, runs)
            share.append(labels_needed(curves[rows], float(found["random"][rows, -1].mean())) / LABELS)
        low, high = np.quantile(share[1:], [0.025, 0.975], method="nearest")
        result[how] = {
            "accuracy_at_end": interval(curves[:, -1]),
            "gain_over_random_at_end": interval(curves[:, -1] - found["random"][:, -1]),
            "labels_for_randoms_accuracy_as_share": [_finite(v) for v in (share[0], low, high)],
            "accuracy": [round(float(v), 4) for v in curves.mean(axis=0)],
        }
    return result


def _finite(value: float) -> float | None:
    """None: not reached within the labels."""
    return round(float(value), 4) if np.isfinite(value) else None


def synthetic(seed: int, size: int = 16) -> tuple[Floats, Floats]:
    """700 prompts of 4 answers with normal features, of which utility is a linear function."""
    rng = np.random.default_rng(5000 + seed)
    x = rng.normal(size=(700, 4, size)) / np.sqrt(size)
    w = rng.normal(size=size) * 3
    return x, x @ w


def real_answers(data: Path) -> Callable[[int], tuple[Floats, Floats]]:
    """AlpacaEval: 4 models' answers a prompt, features of their text, utility the judge's log-odds over the baseline.

    The learner is linear in features that can't express what the judge liked: the setting in which a method's own
    assumptions do not hold.
    """
    import polars as pl

    folder = data / "alpaca_eval"
    table = (
        pl.read_parquet(folder / "preferences.parquet")
        .filter(pl.col("model_1") != pl.col("model_2"))
        .join(
            pl.read_parquet(folder / "outputs.parquet").unique(
                ["instruction", "model"], keep="first", maintain_order=True
            ),
            left_on=["instruction", "model_2"],
            right_on=["instruction", "model"],
            how="inner",
            maintain_order="left",
        )
    )
    # The log-odds run to +-12 where the judge is certain; people are not.
    share = np.clip(table["preference"].to_numpy() - 1.0, 1e-4, 1 - 1e-4)
    utility = 0.5 * np.log(share / (1 - share))
    texts: list[str] = table["output"].to_list()
    x = np.array([text_features(text) for text in texts])
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9) / np.sqrt(x.shape[1])
    prompts = np.unique(table["instruction"].to_numpy(), return_inverse=True)[1]
    rows = [np.flatnonzero(prompts == b) for b in range(int(prompts.max()) + 1)]

    def make(seed: int) -> tuple[Floats, Floats]:
        rng = np.random.default_rng(7000 + seed)
        pick = np.stack([rng.choice(row, 4, replace=False) for row in rows if len(row) >= 4])
        return x[pick], utility[pick]

    return make


def text_features(text: str) -> list[float]:
    """32 plain facts about a text."""
    words = text.split()
    lower = [w.strip(".,:;!?()*\"'").lower() for w in words]
    count = max(len(words), 1)
    marks = ["\n", "- ", "* ", "1.", "**", "#", "`", "?", "!", ":", ",", "(", '"', ";"]
    common = ["i", "you", "the", "is", "however", "sure", "sorry", "please", "can", "here", "and", "for", "as"]
    return [
        float(np.log1p(len(text))),
        float(np.log1p(len(words))),
        len(set(lower)) / count,
        sum(map(len, words)) / count,
        text.count("\n\n") / count,
        *(float(np.log1p(text.count(mark))) for mark in marks),
        *(lower.count(word) / count for word in common),
    ]


def asking(data: Path | None, runs: int) -> tuple[dict[str, Any], list[Claim]]:
    found: dict[str, Any] = {
        "linear": compare(synthetic, 0.0, 1.0, runs),
        "linear_with_a_fifth_of_the_labels_random": compare(synthetic, 0.2, 1.0, runs),
    }
    if data is not None:
        found["real_answers_misspecified_learner"] = compare(real_answers(data), 0.0, 1.0, runs)
    claims: list[Claim] = []
    for name, result in found.items():
        share = result["information"]["labels_for_randoms_accuracy_as_share"]
        holds = share[0] is not None and share[0] <= 0.5
        claims.append((f"asking_{name}", share, "<= half of random's labels for random's accuracy (an aim)", holds))
    return found, claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    data_folder = os.environ.get("FLYWHEEL_DATA") or Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(data_folder))
    parser.add_argument("--quick", action="store_true", help="fewer seeds and records: for development, not for claims")
    parser.add_argument("--runs", type=int, default=50, help="seeds of the recovery and annotator runs")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of the runs that choose what to ask")
    parser.add_argument(
        "--only", nargs="*", default=None, help="recovery, annotators, position, alpaca, asking, server"
    )
    given = parser.parse_args()
    if given.quick:
        given.runs, given.seeds = min(given.runs, 10), min(given.seeds, 3)
    data: Path | None = given.data if (given.data / "alpaca_eval").is_dir() else None
    work: dict[str, Callable[[], tuple[dict[str, Any], list[Claim]]]] = {
        "recovery": lambda: recovery(given.runs),
        "annotators": lambda: annotators(given.runs),
        "position": lambda: position(given.runs),
        **({"alpaca": lambda: alpaca(given.data, given.runs)} if data else {}),
        "asking": lambda: asking(data, given.seeds),
        "server": lambda: labeling_argilla.served(given.quick),
    }
    measured: dict[str, Any] = {}
    claims: list[Claim] = []
    for name, run in work.items():
        if given.only is None or name in given.only:
            used = time.process_time()
            found, more = run()
            measured[name] = {**found, "cpu_s": round(time.process_time() - used, 1)}
            claims += more
    if not data and (given.only is None or "alpaca" in given.only):
        claims.append(("alpaca", None, f"AlpacaEval is not at {given.data}: not measured", False))
    if given.json:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        machine |= {"numpy": np.__version__, "quick": given.quick}
        print(
            json.dumps(
                {
                    "benchmark": "labeling",
                    "simulated_annotators": True,
                    **machine,
                    "measured": measured,
                    "claims": [{"id": i, "value": v, "bar": b, "holds": bool(h)} for i, v, b, h in claims],
                }
            )
        )
        return
    for name, value, bar, holds in claims:
        print(f"{'holds' if holds else 'FAILS':6} {name}: {value} (bar: {bar})")


if __name__ == "__main__":
    main()
