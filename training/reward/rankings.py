"""Ranking rows as lists of token sequences with their ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from engine.seeds import generator
from training.models.answers import Answer, encode_all
from training.preference.pairs import Pair

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
    answers: list[Answer]
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

    Answers longer than `max_length` tokens become unranked. A ranking that orders no two answers says nothing and is
    left out, counted in the summary.

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
    for row in rows:
        answers = encode_all(tokenizer, row["prompt"], [text or "" for text in row["completions"] or []])
        fits = [len(answer) <= max_length for answer in answers]
        ranks = [int(rank or 0) if fit else 0 for rank, fit in zip(row["ranks"], fits, strict=True)]
        if len({rank for rank in ranks if rank}) < 2:
            continue
        shown = tuple(-1 if place is None else int(place) for place in row["shown"] or ())
        one = Ranked(row["prompt_id"], answers, ranks, reliability.get(row["annotator"], 1.0), shown)
        if one.weight <= 0:
            continue
        held = generator("validation", one.prompt_id).random() < held_out
        (validation if held else training).append(one)
    kept = len(training) + len(validation)
    job.summary(rankings=kept, rankings_left_out=len(rows) - kept)
    if kept < len(rows):
        job.say(
            f"{len(rows) - kept} of {len(rows)} rankings are left out: they order no two answers (one ranked, all tied, "
            "too long), or their annotator has no weight."
        )
    if rows and not training:
        raise UserError(
            f"none of the {len(rows)} rankings can be trained on. Expected `ranks` that order at least two answers of at "
            f"most {max_length} tokens (`max_length`)."
        )
    return training, validation
