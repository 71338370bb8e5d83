"""A quality classifier from two sets of the user's examples, as fastText does it: hashed words and pairs of words, and a
linear model.

The words of a text (see `engine.text.words`) and all pairs of neighbours are counted in 2**20 buckets, each occurrence
with a weight of 1 / sqrt(their number), so that a text's length says nothing. The linear model is scikit-learn's logistic
regression with both sets weighted equally: a score of .5 means as like the one as the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from engine.errors import UserError
from engine.store.parquet import encode
from engine.text.words import words
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts, texts_of
from pipelines.texts.forms import word_forms
from pipelines.texts.shingles import make_room

_word_buckets = kernel("pipelines.kernels.word_buckets", "word_buckets")
_margins = kernel("pipelines.kernels.word_buckets", "margins")

BUCKETS = 1 << 20
HELD_OUT = 5  # one text in so many, by the digest of its text, is kept from the training to measure it
LEAST = 10  # examples of each set in either part, without which nothing can be said
PENALTY = 10.0  # scikit-learn's C
TELLING_TERMS = 12


@dataclass(frozen=True)
class Classifier:
    """Scores in (0, 1): how much a text is like the good examples.

    Attributes:
        weights: (BUCKETS,) float32.
        facts: what is known of it: the held-out AUC with its interval, the sizes of the sets, the most telling words.
    """

    weights: Array
    bias: float
    facts: dict[str, Any]

    def score(self, column: pa.Array | pa.ChunkedArray) -> Array:
        """(N,) float64."""
        texts = word_forms(texts_of(column)).texts
        margins = np.zeros(len(texts))
        _margins(texts.data, texts.offsets, self.weights, *make_room(texts.longest()), margins)
        return 1 / (1 + np.exp(-(margins + self.bias)))

    def as_parquet(self) -> bytes:
        """The weights that are not zero as Parquet; the bias stands behind the last bucket."""
        used = np.flatnonzero(self.weights).astype(np.uint32)
        buckets, values = np.append(used, np.uint32(BUCKETS)), np.append(self.weights[used], np.float32(self.bias))
        return encode(pa.table({"bucket": buckets, "weight": values}))


def train(good: Iterable[pa.ChunkedArray | pa.Array], bad: Iterable[pa.ChunkedArray | pa.Array]) -> Classifier:
    """Train on batches of good and of bad texts.

    Raises:
        UserError: too few examples.
    """
    # Only training takes them, and to import them takes longer than most filters.
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    examples: list[str] = []
    labels: list[int] = []
    for label, batches in ((1, good), (0, bad)):
        for batch in batches:
            examples += [text or "" for text in batch.to_pylist()]
        labels += [label] * (len(examples) - len(labels))
    y = np.array(labels)
    held = np.array([xxhash.xxh3_64_intdigest(text.encode()) % HELD_OUT == 0 for text in examples], bool)
    for label, name in ((1, "good"), (0, "bad")):
        for part, what in ((~held, "to learn from"), (held, "held out")):
            if (count := int(((y == label) & part).sum())) < LEAST:
                total = int((y == label).sum())
                raise UserError(
                    f"a quality classifier needs at least {LEAST} texts of each set in both parts; of {total} `{name}` ones, "
                    f"{count} are {what}. Give about {2 * LEAST * HELD_OUT} or more."
                )
    column = pa.chunked_array([pa.array(examples, pa.large_string())])
    buckets, ends = _features(texts_of(column))
    counts = np.diff(ends, prepend=0)
    values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts)
    used, columns = np.unique(buckets, return_inverse=True)
    x: Any = csr_matrix((values, columns, np.append(0, ends)), shape=(len(y), len(used)))
    x.sum_duplicates()
    model: Any = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000, tol=1e-6)
    model.fit(x[~held], y[~held])
    weights = np.zeros(BUCKETS, np.float32)
    weights[used] = model.coef_[0]
    made = Classifier(weights, float(np.float32(model.intercept_[0])), {})
    scores = made.score(column)[held]
    auc, low, high = auc_interval(scores[y[held] == 1], scores[y[held] == 0])
    facts = {
        "held_out_auc": round(auc, 6), "held_out_auc_low": round(low, 6), "held_out_auc_high": round(high, 6),
        "interval": "95 %, Newcombe 2006, method 5",
        "learnt_from": {"good": int(y[~held].sum()), "bad": int((1 - y[~held]).sum())},
        "held_out": {"good": int(y[held].sum()), "bad": int((1 - y[held]).sum())},
        **_telling_terms(examples, weights),
    }  # fmt: skip
    return Classifier(weights, made.bias, facts)


def auc_interval(good: Array, bad: Array) -> tuple[float, float, float]:
    """The area under the ROC curve, ties counted half, with its 95 % interval: (AUC, low, high).

    Newcombe 2006 (Statistics in Medicine 25:559), method 5: the values theta at which the AUC that was measured lies 1.96
    standard errors away, with Hanley and McNeil's variance at theta. It stays in [0, 1] and has a width at 0 and 1, too.
    """
    m, n = len(good), len(bad)
    ordered = np.sort(bad)
    below, upto = np.searchsorted(ordered, good, "left"), np.searchsorted(ordered, good, "right")
    auc = float((below + upto).sum()) / (2 * m * n)
    spread = (m + n) / 2 - 1

    def beyond(theta: float) -> bool:
        factor = 1 + spread * (1 - theta) / (2 - theta) + spread * theta / (1 + theta)
        return abs(auc - theta) > 1.959964 * sqrt(theta * (1 - theta) * factor / (m * n))

    def bound(outer: float) -> float:
        inner = auc
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if beyond(middle) else (middle, outer)
        return inner

    return auc, bound(0.0), bound(1.0)


def _features(texts: Texts) -> tuple[Array, Array]:
    texts = word_forms(texts).texts
    out = np.empty(2 * int(texts.offsets[-1] - texts.offsets[0]) + 2, np.uint32)
    ends = np.zeros(len(texts), np.int64)
    _word_buckets(texts.data, texts.offsets, BUCKETS, *make_room(texts.longest()), out, ends)
    return out[: ends[-1]] if len(ends) else out[:0], ends


def _telling_terms(examples: list[str], weights: Array) -> dict[str, list[str]]:
    """The words and pairs of words whose weights are furthest from zero, to either side."""
    terms = sorted({term for text in _beginnings(examples) for term in _terms(words(text))})
    buckets, ends = _features(texts_of(pa.array(terms, pa.large_string())))
    found = weights[buckets[ends - 1]]  # a pair's own bucket follows those of its words
    order = np.argsort(found, kind="stable")
    return {
        "telling_good": [terms[i] for i in order[::-1][:TELLING_TERMS] if found[i] > 0],
        "telling_bad": [terms[i] for i in order[:TELLING_TERMS] if found[i] < 0],
    }


def _beginnings(examples: list[str]) -> list[str]:
    """A thousand examples spread over all of them, from each the beginning: enough to meet every telling word."""
    return [text[:2000] for text in examples[:: max(1, len(examples) // 1000)]]


def _terms(words_of_text: list[str]) -> Iterator[str]:
    yield from words_of_text
    yield from (f"{a} {b}" for a, b in itertools.pairwise(words_of_text))
