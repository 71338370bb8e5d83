"""BM25 as another library has it, whatever segments passages came in."""

from __future__ import annotations

import bm25s
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retrieval.full_text import FullText, Postings, joined, postings
from engine.retrieval.terms import Terms

TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9), min_size=1, max_size=12)


def same(one: Postings, other: Postings) -> bool:
    a, b = one.arrays(), other.arrays()
    return all(a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a)


def test_scores_are_those_of_bm25s() -> None:
    random = np.random.default_rng(0)
    letters = list("abcdefghijklmnop")
    texts = [[letters[i] for i in random.zipf(1.5, random.integers(1, 40)) % 16] for _ in range(200)]
    known: dict[str, int] = {}
    ids = [[known.setdefault(term, len(known)) for term in terms] for terms in texts]
    other = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    other.index((ids, known), show_progress=False)
    ours = FullText([postings(texts[:50]), postings(texts[50:])])
    for asked in (["a"], ["b", "c", "p"], ["d", "d", "e"], ["a", "nowhere"]):
        theirs = other.get_scores([term for term in asked if term in known])
        assert np.allclose(ours.scores(asked), theirs, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.data())
def test_segments_joined_and_thinned_have_the_bytes_of_one_built_at_once(
    first: list[list[str]], second: list[list[str]], data: st.DataObject
) -> None:
    whole = joined([postings(first), postings(second)])
    assert same(whole, postings(first + second))
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=len(whole.lengths), max_size=len(whole.lengths))))
    left = [terms for terms, out in zip(first + second, gone, strict=True) if not out]
    assert same(whole.without(gone), postings(left))
    assert same(Postings.from_arrays(whole.arrays()), whole)


def test_terms_are_words_without_endings_and_names_in_their_parts() -> None:
    assert Terms("english")("How does readLines close the open_files?") == ["read", "line", "close", "open", "file"]
    assert Terms("none")("The Files") == ["the", "files"]
    assert Terms("german")("Häuser und 猫") == ["haus", "und", "猫"]
