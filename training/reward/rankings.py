"""Ranking rows as lists of token sequences with their ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from engine.seeds import generator
from generators.text.chat_template import Unusable
from generators.text.learning_template import LearningTemplate, learning
from training.models.answers import EncodedAnswer, encode_all
from training.models.splits import check_split
from training.preference.pairs import Pair, set_aside

if TYPE_CHECKING:
    from engine.stage.job import Job
    from engine.store.artifact import Artifact


@dataclass(frozen=True)
class Ranked:
    """One annotator's ranking of answers to one prompt.

    Attributes:
        ranks: 1 is best, equal ranks are ties, 0 is not ranked.
        weight: how much this annotator counts, at least 0.
        shown: the position at which each answer was seen, from 0; -1 unknown.
    """

    prompt_id: str
    answers: list[EncodedAnswer]
    ranks: list[int]
    weight: float = 1.0
    shown: tuple[int, ...] = ()

    def pairs(self) -> list[Pair]:
        """Every two answers of which one was ranked above the other."""
        ordered: list[Pair] = []
        for i, j in itertools.permutations(range(len(self.answers)), 2):
            if 0 < self.ranks[i] < self.ranks[j]:
                shown = np.sign(self.shown[j] - self.shown[i]) if self.shown and min(self.shown) >= 0 else 0
                pair = Pair(
                    self.prompt_id, self.answers[i], self.answers[j], weight=self.weight, shown_first=int(shown)
                )
                ordered.append(pair)
        return ordered


def reliability_in(artifacts: Sequence[Artifact]) -> dict[str, float]:
    """Annotator -> weight, as `preferences` artifacts made of their rankings have it: 1 is the typical annotator, 0 one
    who ranks at random, or upside down.

    Raises:
        UserError: an artifact tells nothing about annotators.
    """
    weights: dict[str, float] = {}
    for artifact in artifacts:
        annotators: dict[str, dict[str, Any]] = artifact.manifest["summary"].get("annotators", {})
        if not any("reliability" in facts for facts in annotators.values()):
            raise UserError(
                f"a reward model learns from `preferences` (pairs) or from `rankings` (whole lists). With both, the "
                f"preferences are to say how reliable each annotator is, and {artifact.id} does not: expected one "
                "made from these rankings by a `preferences` stage."
            )
        # Whom the preferences stage did not count is not counted here.
        weights |= {
            name: 0.0 if facts.get("unreliable") else max(float(facts.get("reliability", 0.0)), 0.0)
            for name, facts in annotators.items()
        }
    return weights


def load(
    job: Job, port: str, tokenizer: Any, max_length: int, held_out: float, reliability: dict[str, float]
) -> tuple[list[Ranked], list[Ranked]]:
    """(training, validation) rankings of all Ranking artifacts of a port, in order; prompts are held out whole.

    A ranking that says nothing, or that the chat template can't show the model, is a rejected row and counted in the summary.

    Args:
        reliability: annotator -> weight; 1 for those not named.

    Raises:
        UserError: no ranking is left.
    """
    rows = [row for artifact in job.all(port) for row in artifact.to_table().to_pylist()]
    unknown = sorted(set(reliability) - {row["annotator"] for row in rows})
    if rows and unknown and len(unknown) == len(reliability):
        raise UserError(f"`reliability` names {', '.join(unknown[:5])}, none of whom ranked anything here.")
    training: list[Ranked] = []
    validation: list[Ranked] = []
    template, rejected = learning(tokenizer), list[dict[str, Any]]()
    for row in rows:
        try:
            check_split(row)
            one = ranked(template, row, max_length, reliability.get(row["annotator"], 1.0))
        except Unusable as fault:
            rejected.append({**row, "reason": fault.reason, "detail": fault.detail, "failed": False})
            continue
        held = generator("validation", one.prompt_id).random() < held_out
        (validation if held else training).append(one)
    job.summary(rankings=len(rows) - len(rejected), rankings_left_out=len(rejected))
    if left_out := set_aside(job, port, rejected):
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items())
        job.say(f"{len(rejected)} of {len(rows)} rankings are left out: {reasons}. The first: {rejected[0]['detail']}.")
    if rows and not training:
        raise UserError(
            f"none of the {len(rows)} rankings can be trained on. Expected `ranks` that order at least two answers of at "
            f"most {max_length} tokens (`max_length`)."
        )
    return training, validation


def ranked(template: LearningTemplate, row: dict[str, Any], max_length: int, weight: float) -> Ranked:
    """A ranking as token sequences. Answers longer than `max_length` tokens become unranked.

    Raises:
        Unusable: nothing can be learnt from it.
    """
    if weight <= 0:
        raise Unusable("no_weight", f"{row['annotator']} has no weight")
    texts = [text or "" for text in row["completions"] or []]
    answers = encode_all(template, row["prompt"] or [], texts, row.get("tools"))
    fits = [len(answer) <= max_length for answer in answers]
    ranks = [int(rank or 0) if fit else 0 for rank, fit in zip(row["ranks"] or [], fits, strict=True)]
    if len({rank for rank in ranks if rank}) < 2:
        raise Unusable("no_order", f"it orders no two answers of at most {max_length} tokens: all tied, or one ranked")
    shown = tuple(-1 if place is None else int(place) for place in row["shown"] or ())
    return Ranked(row["prompt_id"], answers, ranks, weight, shown)
