"""Full text: which terms stand in which passages how often, and BM25 over them (Robertson and Zaragoza, 2009, equation 3.15).

    score(question, passage) = sum over terms of idf(term) * count / (count + k1 * (1 - b + b * length / mean length))
    idf(term) = log(1 + (N - n + 0.5) / (n + 0.5)),  n of N passages having the term (Lucene's, which is never negative)

Counts are kept, not scores: what is rare among all passages, and how long they are on average, is worked out when one asks. So passages
may come and go by the segment, and the answers are those of an index built at once. A segment without some passages, or two put
together, have the bytes of one that was built from what is left.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Postings:
    """The terms of N passages.

    Attributes:
        vocabulary: (V,) terms, sorted.
        starts: (V + 1,) where each term's passages begin in the next two.
        passages: (P,) numbers of passages, ascending within a term.
        counts: (P,) how often the term stands there, at most 65,535.
        lengths: (N,) terms of each passage.
    """

    vocabulary: list[str]
    starts: Ints
    passages: Ints
    counts: Ints
    lengths: Ints

    def of(self, term: str) -> slice:
        """Where a term's passages are; an empty slice if it has none."""
        at = bisect_left(self.vocabulary, term)
        if at == len(self.vocabulary) or self.vocabulary[at] != term:
            return slice(0, 0)
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def without(self, gone: NDArray[np.bool_]) -> Postings:
        """The same without some passages (N,); those that stay are numbered anew."""
        stays = ~gone[self.passages]
        number = np.cumsum(~gone) - 1
        term = np.repeat(np.arange(len(self.vocabulary)), np.diff(self.starts))[stays]
        return _grouped(
            self.vocabulary, term, number[self.passages[stays]], self.counts[stays], self.lengths[~gone].copy()
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """As it is kept."""
        joined = "\n".join(self.vocabulary).encode()
        return {
            "vocabulary": np.frombuffer(joined, np.uint8).copy(), "starts": self.starts, "passages": self.passages,
            "counts": self.counts, "lengths": self.lengths,
        }  # fmt: skip

    @staticmethod
    def from_arrays(arrays: dict[str, NDArray[np.generic]]) -> Postings:
        joined = arrays["vocabulary"].tobytes().decode()
        ints: list[Ints] = [
            np.asarray(arrays[n], dtype=arrays[n].dtype) for n in ("starts", "passages", "counts", "lengths")
        ]  # pyright: ignore[reportAssignmentType]
        return Postings(joined.split("\n") if joined else [], *ints)


def postings(texts: Sequence[list[str]]) -> Postings:
    """The terms of passages, given as lists."""
    known: dict[str, int] = {}
    flat = np.array([known.setdefault(term, len(known)) for terms in texts for term in terms], np.int64)
    lengths = np.array([len(terms) for terms in texts], np.int32)
    vocabulary = sorted(known)
    place = np.empty(len(known), np.int64)
    place[[known[term] for term in vocabulary]] = np.arange(len(vocabulary))
    pair = place[flat] * max(1, len(texts)) + np.repeat(np.arange(len(texts)), lengths)
    pair, counts = np.unique(pair, return_counts=True)
    term, passage = np.divmod(pair, max(1, len(texts)))
    return _grouped(vocabulary, term, passage, np.minimum(counts, 65_535), lengths)


def joined(segments: Sequence[Postings]) -> Postings:
    """Segments as one, their passages one after the other."""
    vocabulary = sorted({term for one in segments for term in one.vocabulary})
    place = {term: at for at, term in enumerate(vocabulary)}
    terms: list[Ints] = [np.zeros(0, np.int64)]
    passages: list[Ints] = [np.zeros(0, np.int64)]
    before = 0
    for one in segments:
        own = np.array([place[term] for term in one.vocabulary], np.int64)
        terms.append(np.repeat(own, np.diff(one.starts)))
        passages.append(one.passages.astype(np.int64) + before)
        before += len(one.lengths)
    term, passage = np.concatenate(terms), np.concatenate(passages)
    counts = np.concatenate([np.zeros(0, np.uint16), *(one.counts for one in segments)])
    order = np.lexsort((passage, term))
    lengths = np.concatenate([np.zeros(0, np.int32), *(one.lengths for one in segments)])
    return _grouped(vocabulary, term[order], passage[order], counts[order], lengths)


def _grouped(vocabulary: list[str], term: Ints, passage: Ints, counts: Ints, lengths: Ints) -> Postings:
    """From entries sorted by term and passage; terms without one are left out."""
    used, sizes = np.unique(term, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Postings(
        [vocabulary[at] for at in used.tolist()], starts, passage.astype(np.int32), counts.astype(np.uint16), lengths
    )


@dataclass
class FullText:
    """BM25 over segments, as if they were one."""

    segments: list[Postings]
    k1: float = K1
    b: float = B
    _norms: dict[int, NDArray[np.float64]] = field(default_factory=lambda: {})

    @cached_property
    def count(self) -> int:
        """Passages."""
        return sum(len(one.lengths) for one in self.segments)

    @cached_property
    def mean_length(self) -> float:
        return sum(int(one.lengths.sum(dtype=np.int64)) for one in self.segments) / max(1, self.count)

    def weight(self, term: str) -> float:
        """idf; largest for a term that stands nowhere."""
        found = sum(place.stop - place.start for place in (one.of(term) for one in self.segments))
        return float(np.log(1 + (self.count - found + 0.5) / (found + 0.5)))

    def scores(self, terms: Sequence[str]) -> NDArray[np.float64]:
        """(passages,) scores, 0 where a passage has none of these terms. A term that is repeated counts as often."""
        total = np.zeros(self.count)
        weights = {term: self.weight(term) for term in set(terms)}
        begin = 0
        for number, one in enumerate(self.segments):
            norm = self._norm(number)
            for term in sorted(terms):  # sums have one order
                place = one.of(term)
                passages, counts = one.passages[place], one.counts[place].astype(np.float64)
                total[begin + passages] += weights[term] * counts / (counts + norm[passages])
            begin += len(one.lengths)
        return total

    def _norm(self, number: int) -> NDArray[np.float64]:
        if number not in self._norms:
            length = self.segments[number].lengths / max(self.mean_length, 1e-9)
            self._norms[number] = self.k1 * (1 - self.b + self.b * length)
        return self._norms[number]
