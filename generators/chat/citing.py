"""What an answer rests on: of each statement the passages that bear it out, and the sentence that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.retrieval.retrieval_index import Hit, RetrievalIndex
from engine.text.words import words
from generators.grounded.citations import statements
from generators.grounded.support import support

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


@dataclass(frozen=True)
class Citation:
    """A passage that an answer rests on.

    Attributes:
        number: as it was shown, from 1.
        quote: the sentence of it that has most of what the answer says.
        named: whether the answer names it; else it was found by comparison.
    """

    number: int
    hit: Hit
    quote: str
    named: bool


def citations(
    answer: str, hits: Sequence[Hit], index: RetrievalIndex, question: str
) -> tuple[list[Citation], list[str]]:
    """What an answer rests on, and which of its statements are borne out by none of the passages shown (`generators.grounded.support`).

    A statement that names no passage, or others than those that bear it out, is compared with all that were shown.
    """
    texts = [f"{hit.heading}\n{hit.text}" if hit.heading else hit.text for hit in hits]
    found: dict[int, Citation] = {}
    unsupported: list[str] = []
    for one in statements(answer):
        named = [number for number in one.cited if 1 <= number <= len(hits)]
        borne = bool(named) and bool(support(one.text, [texts[number - 1] for number in named], question))
        numbers = named if borne else _bearing(one.text, texts, index, question)
        if not numbers:
            unsupported.append(one.text)
        for number in numbers:
            quote = _nearest(one.text, hits[number - 1].text, index)
            found.setdefault(number, Citation(number, hits[number - 1], quote, borne))
    return [found[number] for number in sorted(found)], unsupported


def _bearing(statement: str, texts: Sequence[str], index: RetrievalIndex, question: str) -> list[int]:
    """The passage that has most of a statement, of those that bear it out."""
    bearing = [at for at, text in enumerate(texts) if support(statement, [text], question)]
    return [max(bearing, key=lambda at: index.coverage(statement, [texts[at]])) + 1] if bearing else []


def _nearest(statement: str, text: str, index: RetrievalIndex) -> str:
    sentences = [one.strip() for one in _SENTENCE.split(text) if words(one)]
    return max(sentences, key=lambda one: index.coverage(statement, [one]), default=text.strip())
