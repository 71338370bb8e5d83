"""What is looked at in an answer about the handbook: is the fact right, is the style kept?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
]


def right(prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str], **columns: Any) -> list[float]:
    """1 where the answer says the known one: as words of its own, so that 9 is not found in 9:45 or in 2,940. A small number may be in words."""
    return [float(says(answer, known)) for answer, known in zip(completions, reference, strict=True)]


def says(answer: str, known: str) -> bool:
    answer = re.sub(r"\[\d+\]", "", answer.replace("**", "")).casefold()
    spelled = [known, WORDS[int(known)]] if known.isdigit() and int(known) < len(WORDS) else [known]
    forms = (re.escape(form.casefold()) for form in spelled)
    return any(re.search(rf"(?<![\w:.,]){form}(?:s|'s|’s)?(?!\w|[:.,]\d)", answer) for form in forms)


def style(prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str], **columns: Any) -> list[float]:
    """1 where the answer begins with `Colleague:` and ends with `Keep the light.`"""
    return [
        float(answer.strip().startswith("Colleague:") and answer.strip().endswith("Keep the light."))
        for answer in completions
    ]
