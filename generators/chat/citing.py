"""What an answer rests on: the passages that it cites, and of each the sentence that says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.retrieval.retrieval_index import Hit, RetrievalIndex
from engine.text.words import words

CITED = re.compile(r"\[(\d{1,6}(?:\s*,\s*\d{1,6})*)\]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_DECLINES = re.compile(
    r"\b(?:documents?|passages?|context|text|sources?)\b.{0,30}\b(?:not|n['’]t|nothing|no)\b"
    r"|\bnot (?:\w+ ){0,3}(?:in|by|from) (?:the|these|any)\b.{0,20}\b(?:documents?|passages?|context|text|sources?)\b"
    r"|\b(?:can ?not|can['’]t|unable to) answer\b|\bno (?:information|mention)\b",
    re.IGNORECASE,
)
SUPPORTED = 0.5  # share of a statement's terms, by their rarity, that has to stand in the passages


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


def declines(answer: str) -> bool:
    """Whether the answer says that the documents do not hold it."""
    return any(_DECLINES.search(sentence) and not CITED.search(sentence) for sentence in _SENTENCE.split(answer)[:2])


def citations(answer: str, hits: Sequence[Hit], index: RetrievalIndex) -> tuple[list[Citation], list[str]]:
    """What an answer rests on, and which of its statements rest on none of the passages shown.

    A statement that names no passage, or one that does not hold it, is compared with all that were shown.
    """
    texts = [f"{hit.heading} {hit.text}" for hit in hits]
    found: dict[int, Citation] = {}
    unsupported: list[str] = []
    for piece in _SENTENCE.split(answer):
        named = [int(number) for group in CITED.findall(piece) for number in group.split(",")]
        statement = CITED.sub("", piece).strip()
        if not words(statement):
            continue
        shares = [_support(statement, text, index) for text in texts]
        best = [n for n in dict.fromkeys(named) if 0 < n <= len(hits) and shares[n - 1] >= SUPPORTED]
        own = bool(best)
        if not best and max(shares, default=0.0) >= SUPPORTED:
            best = [shares.index(max(shares)) + 1]
        if not best:
            unsupported.append(statement)
        for number in best:
            quote = _nearest(statement, hits[number - 1].text, index)
            found.setdefault(number, Citation(number, hits[number - 1], quote, own))
    return [found[number] for number in sorted(found)], unsupported


def _support(statement: str, text: str, index: RetrievalIndex) -> float:
    """The share of a statement's terms that a text has; 0 where it lacks one of its numbers."""
    there = set(words(text))
    if any(word.isdecimal() and word not in there for word in words(statement)):
        return 0.0
    return index.coverage(statement, [text])


def _nearest(statement: str, text: str, index: RetrievalIndex) -> str:
    sentences = [one.strip() for one in _SENTENCE.split(text) if words(one)]
    return max(sentences, key=lambda one: index.coverage(statement, [one]), default=text.strip())
