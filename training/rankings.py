"""Ranking rows as lists of token sequences with their ranks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from engine.errors import UserError
from engine.job import Job
from engine.seeds import generator
from training.answers import Answer, encode
from training.pairs import Pair


@dataclass(frozen=True)
class Ranked:
    """One annotator's ranking of answers to one prompt.

    Attributes:
        ranks: 1 is best, equal ranks are ties, 0 is not ranked.
        weight: how much this annotator counts, at least 0.
    """

    prompt_id: str
    answers: list[Answer]
    ranks: list[int]
    weight: float = 1.0

    def pairs(self) -> list[Pair]:
        """Every two answers of which one was ranked above the other."""
        found: list[Pair] = []
        for i, j in itertools.permutations(range(len(self.answers)), 2):
            if 0 < self.ranks[i] < self.ranks[j]:
                found.append(Pair(self.prompt_id, self.answers[i], self.answers[j], weight=self.weight))
        return found


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
    training: list[Ranked] = []
    validation: list[Ranked] = []
    for row in rows:
        said = [[{"role": "assistant", "content": text or ""}] for text in row["completions"] or []]
        answers = [encode(tokenizer, row["prompt"], completion) for completion in said]
        fits = [len(answer) <= max_length for answer in answers]
        ranks = [int(rank or 0) if fit else 0 for rank, fit in zip(row["ranks"], fits, strict=True)]
        if len({rank for rank in ranks if rank}) < 2:
            continue
        one = Ranked(row["prompt_id"], answers, ranks, reliability.get(row["annotator"], 1.0))
        held = generator("validation", one.prompt_id).random() < held_out
        (validation if held else training).append(one)
    kept = len(training) + len(validation)
    job.summary(rankings=kept, rankings_left_out=len(rows) - kept)
    if kept < len(rows):
        job.say(f"{len(rows) - kept} of {len(rows)} rankings order no two answers (one ranked, all tied, or too long).")
    if rows and not training:
        raise UserError(
            f"none of the {len(rows)} rankings can be trained on. Expected `ranks` that order at least two answers of at "
            f"most {max_length} tokens (`max_length`)."
        )
    return training, validation
