"""What a reward model is worth, on prompts that were held out whole: the facts in its artifact's summary.

Beside the accuracy stand what length alone would have got right, whether its probabilities can be believed (`training.reward.calibration`),
and whether the labels it learnt from were pulled by the order in which answers were shown.

Shapes: P pairs, B = 2P answers (chosen and rejected in turn), O objectives, H heads of an objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.seeds import generator
from engine.statistics import bootstrap
from engine.statistics.bootstrap import Interval
from training.preference.pairs import Pair
from training.reward import calibration
from training.reward.model import RewardModel

if TYPE_CHECKING:
    from engine.stage.job import Job


def report(job: Job, reward: RewardModel, training: list[Pair], validation: list[Pair]) -> np.ndarray:
    """Measure the model, put what came out into the summary, and return the calibrated temperature_O of each objective."""
    names = list(reward.objectives) or [""]
    if not validation:
        job.say("No pair is held out, so the accuracy of this reward model is unknown.")
        return np.ones(len(names))
    scores_POH = reward.by_objective([pair.chosen for pair in validation]).double().numpy()
    other_POH = reward.by_objective([pair.rejected for pair in validation]).double().numpy()
    temperatures: list[float] = []
    measured: dict[str, dict[str, Any]] = {}
    for o, name in enumerate(names):
        rows = [p for p, pair in enumerate(validation) if not name or pair.source == name]
        taught = [pair for pair in training if not name or pair.source == name]
        if not rows:
            job.say(f"No pair of the objective `{name}` is held out, so its accuracy is unknown.")
            temperatures.append(1.0)
            continue
        difference = scores_POH[rows, o].mean(1) - other_POH[rows, o].mean(1)
        facts = measure(difference, [validation[p] for p in rows], taught, job.seed)
        temperatures.append(facts["temperature"])
        if scores_POH.shape[2] > 1:
            both = np.concatenate([scores_POH[rows, o], other_POH[rows, o]])
            facts["disagreement"] = float(both.std(1).mean())
        measured[name] = {key: round_off(value) for key, value in facts.items()}
        tell(job, name, facts, scores_POH[rows, o])
    job.summary(training_mean=[round_off(float(m)) for m in reward.mean_K])
    job.summary(**measured.get("", {"objectives": measured}))
    tell_position(job, training, validation, reward)
    return np.array(temperatures)


def measure(difference: np.ndarray, validation: list[Pair], training: list[Pair], seed: int) -> dict[str, Any]:
    """The facts about one objective.

    Args:
        difference: r_chosen - r_rejected of each validation pair.
        training: the pairs that say whether longer is usually better.
    """
    clusters = [pair.prompt_id for pair in validation]
    lengths = length_difference(validation)
    longer_wins = np.sign(np.sign(length_difference(training)).sum())
    by_length = won(longer_wins * lengths)
    # Each half is judged at the temperature the other one asks for.
    half = np.array([generator("half", cluster).random() < 0.5 for cluster in clusters])
    temperatures = np.where(
        half, calibration.fit_temperature(difference[~half]), calibration.fit_temperature(difference[half])
    )
    calibrated = difference / temperatures
    return {
        "validation_pairs": len(validation),
        "validation_prompts": len(set(clusters)),
        **spread("accuracy", bootstrap.mean(won(difference), clusters, seed, "accuracy")),
        **spread("length_accuracy", bootstrap.mean(by_length, clusters, seed, "length")),
        **spread("advantage_over_length", bootstrap.mean(won(difference) - by_length, clusters, seed, "advantage")),
        "length_correlation": correlation(difference, lengths),
        **spread("ece", calibration.ece_interval(calibrated, clusters, seed)),
        "ece_uncalibrated": calibration.ece(difference),
        **spread("brier", calibration.brier_interval(calibrated, clusters, seed)),
        "nll": calibration.nll(calibrated),
        "temperature": calibration.fit_temperature(difference),
    }


def tell(job: Job, name: str, facts: dict[str, Any], scores: np.ndarray) -> None:
    of = f" of `{name}`" if name else ""
    job.say(
        f"Held-out accuracy{of} {facts['accuracy']:.1%} [{facts['accuracy_low']:.1%}, {facts['accuracy_high']:.1%}] on "
        f"{facts['validation_pairs']} pairs of {facts['validation_prompts']} prompts; picking by length alone "
        f"{facts['length_accuracy']:.1%}."
    )
    if scores.mean(1).std() < 1e-6:
        job.say(f"The reward{of} is constant: it tells no two answers apart. Are there enough preferences that differ?")
    elif facts["advantage_over_length_low"] <= 0:
        job.say(
            f"The reward model{of} does not beat picking by length alone beyond doubt (see `advantage_over_length`)."
        )


def tell_position(job: Job, training: list[Pair], validation: list[Pair], reward: RewardModel) -> None:
    """Whether what was shown first won more often than it should, where it is known what was.

    A reward model reads one answer at a time, so it can't favour a position; labels can, and then some of what it learnt
    is noise. Where positions were drawn at random, 1/2 is expected of all labels, and of the model on held-out pairs.
    """
    known = [pair for pair in [*training, *validation] if pair.shown_first]
    held = [pair for pair in validation if pair.shown_first]
    if not held:
        return

    def first_won(pairs: list[Pair], chosen_won: np.ndarray) -> Interval:
        first = np.array([pair.shown_first for pair in pairs])
        return bootstrap.mean(won(first * chosen_won), [pair.prompt_id for pair in pairs], job.seed, "position")

    scores = reward.by_objective([answer for pair in held for answer in pair.answers])[:, 0].mean(1).double().numpy()
    labels, model = first_won(known, np.ones(len(known))), first_won(held, scores[0::2] - scores[1::2])
    facts = {**spread("shown_first_won", labels), **spread("shown_first_scores_higher", model)}
    job.summary(**{name: round_off(value) for name, value in facts.items()})
    if labels.low > 0.5 or labels.high < 0.5:
        job.say(
            f"What annotators saw first won {labels.value:.1%} [{labels.low:.1%}, {labels.high:.1%}] of its comparisons. "
            "A `preferences` stage estimates that pull and takes it out (`position_bias`)."
        )


def spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def won(difference: np.ndarray) -> np.ndarray:
    """1 where the difference is positive, 0 where negative, 0.5 where there is none."""
    return (np.sign(difference) + 1) / 2


def length_difference(pairs: Sequence[Pair]) -> np.ndarray:
    return np.array([len(pair.chosen.response) - len(pair.rejected.response) for pair in pairs], dtype=np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; 0 where one of them does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def round_off(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
