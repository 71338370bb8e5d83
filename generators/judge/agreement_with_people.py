"""How far a judge agrees with people, and whether it favours long answers more than they do.

An item is one person's verdict on one pair of answers: win, tie or loss, next to the judge's on the same pair. Agreement
is the share of items on which the two say the same; Cohen's kappa (1960) takes from it what their habits alone would
give. Intervals are 95 %, percentiles over resampled prompts, since the pairs of a prompt are not independent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import seeds

DRAWS = 1_000
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PairVerdict:
    """One person and the judge on one pair; verdicts are 1 (the first answer wins), 0 (tie), -1.

    Attributes:
        longer: 1 if the first answer has more characters, -1 if the second has, 0 if neither.
    """

    prompt: str
    pair: tuple[str, str]
    judge: int
    person: int
    longer: int


def items(
    rankings: Iterable[Mapping[str, Any]], judged: Mapping[tuple[str, str], float], lengths: Mapping[str, int]
) -> list[PairVerdict]:
    """What people (annotators that are no judges) ranked and the judge compared.

    Args:
        rankings: Ranking rows.
        judged: (answer, other answer) -> the judge's value of the first: above 0.5 it wins, below it loses.
    """
    verdicts = list[PairVerdict]()
    for row in rankings:
        if row["annotator_kind"] == "judge":
            continue
        ranked = [(one, rank) for one, rank in zip(row["candidates"], row["ranks"], strict=True) if rank is not None]
        for (one, rank), (other, its_rank) in itertools.combinations(sorted(ranked), 2):
            value = judged.get((one, other))
            if value is None:
                continue
            verdicts.append(
                PairVerdict(
                    row["prompt_id"], (one, other), _sign(value - 0.5), _sign(its_rank - rank),
                    _sign(lengths[one] - lengths[other]),
                )
            )  # fmt: skip
    return verdicts


def calibrate(found: Sequence[PairVerdict], seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Agreement, kappa and length bias, each with its interval; and how far people agree among themselves."""
    if not found:
        return {"items": 0}
    judge, person, longer = (
        np.array([getattr(item, name) for item in found]) for name in ("judge", "person", "longer")
    )
    names, prompt = np.unique([item.prompt for item in found], return_inverse=True)
    members = np.split(np.argsort(prompt, kind="stable"), np.cumsum(np.bincount(prompt))[:-1])
    random = seeds.generator("calibration", seed)
    picks = [np.concatenate([members[i] for i in random.integers(0, len(names), len(names))]) for _ in range(draws)]

    def told(statistic: Any) -> dict[str, float | None]:
        drawn = np.array([statistic(judge[pick], person[pick], longer[pick]) for pick in picks])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
        values = {"value": statistic(judge, person, longer), "low": low, "high": high}
        return {name: None if np.isnan(value) else round(float(value), 6) for name, value in values.items()}

    return {
        "items": len(found),
        "prompts": len(names),
        "agreement": told(lambda j, p, w: float((j == p).mean())),
        "kappa": told(lambda j, p, w: kappa(j, p)),
        "length_bias": told(lambda j, p, w: prefers_longer(j, w) - prefers_longer(p, w)),
        "judge_prefers_longer": _plain(prefers_longer(judge, longer)),
        "people_prefer_longer": _plain(prefers_longer(person, longer)),
        "people_agree": _plain(among_people(found)),
    }


def kappa(a: Ints, b: Ints) -> float:
    """Cohen's kappa of two raters' categories; NaN where both always say the same one thing."""
    observed = float((a == b).mean())
    expected = float(sum((a == c).mean() * (b == c).mean() for c in np.union1d(a, b)))
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def prefers_longer(verdict: Ints, longer: Ints) -> float:
    """The share of verdicts for the longer answer, among those that are no ties; NaN if there are none."""
    decided = (verdict != 0) & (longer != 0)
    return float((verdict == longer)[decided].mean()) if decided.any() else float("nan")


def among_people(found: Sequence[PairVerdict]) -> float:
    """The share of pairs of people that say the same of the same pair of answers; NaN if no two saw one."""
    by_pair: dict[tuple[str, str], list[int]] = {}
    for item in found:
        by_pair.setdefault(item.pair, []).append(item.person)
    same = [a == b for said in by_pair.values() for a, b in itertools.combinations(said, 2)]
    return float(np.mean(same)) if same else float("nan")


def win_rates(values: Mapping[str, Mapping[str, Sequence[float]]], seed: int = 0) -> dict[str, dict[str, float]]:
    """Model -> its win rate, the mean over prompts of the mean over its pairs, with the interval over prompts.

    Args:
        values: model -> prompt -> values in [0, 1].
    """
    table: dict[str, dict[str, float]] = {}
    for model, by_prompt in sorted(values.items()):
        means = np.array([np.mean(by_prompt[prompt]) for prompt in sorted(by_prompt)])
        random = seeds.generator("win_rate", seed, model)
        drawn = means[random.integers(0, len(means), (DRAWS, len(means)))].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        table[model] = {"value": float(means.mean()), "low": round(float(low), 6), "high": round(float(high), 6),
                        "prompts": len(means)}  # fmt: skip
    return table


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
