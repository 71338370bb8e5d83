"""Is a text new, next to all that is there? Exact, not sampled: every earlier text that could be too like it is compared.

Words are those of `engine.text.words`.

ROUGE-L  F1 of the longest common subsequence of words (Lin, 2004); Self-Instruct keeps what stays below 0.7
Jaccard  of the sets of word n-grams
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from engine.text.normal_form import normal_form
from engine.text.words import words
from generators.instructions.novelty_rule import Novelty


def rouge_l(a: list[str], b: list[str]) -> float:
    """ROUGE-L F1 of two lists of words: 2 LCS / (len(a) + len(b)); 0 if either is empty."""
    return 2 * common_subsequence(a, b) / (len(a) + len(b)) if a and b else 0.0


def common_subsequence(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence, a bit a word (Allison and Dix, 1986; Hyyro, 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = full = (1 << len(a)) - 1
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def _said(text: str) -> list[str]:
    """The words of a text; one without any (an emoji, a formula of symbols) is a word by itself."""
    return words(text) or [normal_form(text)]


class EarlierTexts:
    """The texts that are there, by number, and an index that finds those that share words with a new one."""

    def __init__(self, rule: Novelty) -> None:
        self.rule = rule
        self._texts = list[list[str]]()
        self._names = list[str]()
        self._exact = dict[tuple[str, ...], int]()
        # Words (and n-grams) -> the texts that have them, once for each time, so that a count is that of a multiset.
        self._word: dict[str, array[int]] = {}
        self._gram: dict[tuple[str, ...], array[int]] = {}
        self._grams = list[int]()

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str, name: str) -> None:
        """Add a text; `name` is what a refusal calls it."""
        said, number = _said(text), len(self._texts)
        self._texts.append(said)
        self._names.append(name)
        self._exact.setdefault(tuple(said), number)
        if self.rule.rouge_l is not None:
            for word, count in Counter(said).items():
                self._word.setdefault(f"{word} 1", array("i")).append(number)
                for more in range(2, count + 1):
                    self._word.setdefault(f"{word} {more}", array("i")).append(number)
        if self.rule.jaccard is not None:
            grams = self._ngrams(said)
            self._grams.append(len(grams))
            for gram in grams:
                self._gram.setdefault(gram, array("i")).append(number)

    def like(self, text: str) -> tuple[str, str, float] | None:
        """What a text is too like: the rule it breaks, the name of the earlier text, and how like they are."""
        said = _said(text)
        if (same := self._exact.get(tuple(said))) is not None:
            return "exact", self._names[same], 1.0
        if self.rule.rouge_l is not None and (found := self._by_rouge(said, self.rule.rouge_l)):
            return "rouge_l", self._names[found[0]], found[1]
        if self.rule.jaccard is not None and (found := self._by_ngrams(said, self.rule.jaccard)):
            return "jaccard", self._names[found[0]], found[1]
        return None

    def _by_rouge(self, said: list[str], limit: float) -> tuple[int, float] | None:
        # A common subsequence is no longer than the words in common: only texts with enough of those are compared.
        keys = [f"{word} {i}" for word, count in Counter(said).items() for i in range(1, count + 1)]
        hits = [self._word[key] for key in keys if key in self._word]
        if not hits:
            return None
        common = np.bincount(np.concatenate([np.frombuffer(hit, np.intc) for hit in hits]))
        for number in np.flatnonzero(common * 2 >= limit * (len(said) + 1)):
            other = self._texts[number]
            if 2 * common[number] >= limit * (len(said) + len(other)) - 1e-9:
                score = rouge_l(said, other)
                if score >= limit:
                    return int(number), score
        return None

    def _by_ngrams(self, said: list[str], limit: float) -> tuple[int, float] | None:
        grams = self._ngrams(said)
        hits = [self._gram[gram] for gram in grams if gram in self._gram]
        if not hits:
            return None
        common = np.bincount(np.concatenate([np.frombuffer(hit, np.intc) for hit in hits]), minlength=len(self._grams))
        jaccard = common / (len(grams) + np.array(self._grams) - common)
        best = int(jaccard.argmax())
        return (best, float(jaccard[best])) if jaccard[best] >= limit else None

    def _ngrams(self, said: list[str]) -> set[tuple[str, ...]]:
        n = self.rule.n
        return {tuple(said[i : i + n]) for i in range(max(len(said) - n + 1, min(len(said), 1)))}
