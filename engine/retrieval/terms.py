"""What full text is searched by: words, as all of Flywheel counts them (`engine.text.words`), with the parts of names apart
(`readLine`, `read_line`: read, line), without the words of a language that tell nothing, and without endings (Snowball; Porter, 2001).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import Stemmer

from engine.text.words import words

# Lucene's list (EnglishAnalyzer), and the words that questions are put in.
STOP_WORDS = frozenset({
    "a", "about", "an", "and", "are", "as", "at", "be", "but", "by", "can", "could", "did", "do", "does", "for",
    "from", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "no", "not", "of", "on",
    "or", "our", "said", "say", "says", "should", "such", "tell", "that", "the", "their", "then", "there", "these",
    "they", "this", "to", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will", "with",
    "would", "you", "your",
})  # fmt: skip
_JOINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+")


class Terms:
    """The terms of texts in a language: one of Snowball's (`english`, `german`, ...), or `none` for words as they are."""

    def __init__(self, language: str) -> None:
        self._stemmer: Any = None if language == "none" else Stemmer.Stemmer(language)
        self._left_out = STOP_WORDS if language == "english" else frozenset[str]()
        self._stem = lru_cache(1 << 18)(self._stemmed)

    def __call__(self, text: str) -> list[str]:
        found = words(_JOINS.sub(" ", text))
        return [self._stem(word) for word in found if word not in self._left_out]

    def _stemmed(self, word: str) -> str:
        return word if self._stemmer is None else str(self._stemmer.stemWord(word))


def languages() -> list[str]:
    """What a language may be called."""
    return [*Stemmer.algorithms(), "none"]
