"""What an answer is worth. Called with lists, one item an answer, by name: prompts, completions, reference, length, finish_reason."""

from __future__ import annotations

import re


def right(completions: list[str], reference: list[str | None], **columns: list[object]) -> list[float | None]:
    """1 where the last number in the answer is the reference, else 0; no verdict where there is no reference."""
    numbers = [re.findall(r"-?\d+(?:\.\d+)?", text) for text in completions]
    return [
        None if wanted is None else float(bool(found) and float(found[-1]) == float(wanted))
        for found, wanted in zip(numbers, reference, strict=True)
    ]


def brief(completions: list[str], **columns: list[object]) -> list[float]:
    """From 1 for no word at all down to 0 for fifty words and more."""
    return [max(0.0, 1 - len(text.split()) / 50) for text in completions]
