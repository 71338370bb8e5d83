"""What an answer from passages is worth: as the scripted annotators see it, and by a rule of its own that nobody ranks by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from generators.grounded.attribution import attribution
from generators.grounded.refusal import declines

PASSAGE = re.compile(
    r"^\[\d+\] (.*?)(?=\n\n\[\d+\] |\n\nAnswer the question from these passages|\Z)", re.MULTILINE | re.DOTALL
)


def liked(
    prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str | None], **columns: Any
) -> list[float]:
    """A refusal where there is no known answer is worth 2. Else: 1 for citing, 1 for what follows from what is cited, and less for length."""
    return [_liked(*row) for row in zip(prompts, completions, reference, strict=True)]


def _liked(prompt: str, answer: str, known: str | None) -> float:
    found = attribution(answer, PASSAGE.findall(prompt))
    if found.refused:
        return 0.0 if known else 2.0
    return (found.resolved or 0.0) + (found.recall or 0.0) - min(len(answer.split()) / 100, 1.0)


def words_in_common(
    prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str | None], **columns: Any
) -> list[float]:
    """F1 of the words of answer and known answer (SQuAD; Rajpurkar et al., 2016), without marks; of a question that has none, 1 for saying so."""
    return [
        _f1(answer, known) if known else float(declines(answer))
        for answer, known in zip(completions, reference, strict=True)
    ]


def _f1(answer: str, known: str) -> float:
    ours, theirs = (Counter(re.findall(r"\w+", re.sub(r"\[\d+\]", "", text).lower())) for text in (answer, known))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0
