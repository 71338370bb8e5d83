"""Shingles: what near-duplicate detection compares, over Arrow's offsets and bytes without Python strings.

A shingle is `n` words in a row (see `engine.text.words`); a text of 1 to `n` words has one shingle, all its words. The Jaccard
similarity of two texts is that of their sets of shingles. A shingle is known by 64 bits: two different ones among a million
are equal with probability 3e-8.
"""

from __future__ import annotations

import numpy as np

from engine.text.words import words
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts
from pipelines.texts.forms import word_forms

_shingle_sets = kernel("pipelines.kernels.word_hashes", "shingle_sets")
_compact = kernel("pipelines.kernels.word_hashes", "compact")
_shared_runs = kernel("pipelines.kernels.word_hashes", "shared_runs")


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The set of shingles of a text; empty for a text without words."""
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, min(len(found), 1)))}


def jaccard(a: str, b: str, n: int) -> float:
    """|A and B| / |A or B| of the two texts' shingles; 0 if neither has any."""
    one, two = shingles(a, n), shingles(b, n)
    return len(one & two) / max(len(one | two), 1)


def make_room(longest: int) -> tuple[Array, ...]:
    """What kernels need to find the words of texts (forms of them) of up to so many bytes: the text in lower case (and up to two blocks
    of 64 bytes after it), where words begin, where they end, their hashes."""
    places = longest + 1
    return (
        np.empty(longest + 128, np.uint8), np.empty(places, np.int32), np.empty(places, np.int32),
        np.empty(places, np.uint64),
    )  # fmt: skip


def sorted_sets(texts: Texts, chosen: Array, n: int) -> tuple[Array, Array]:
    """The sets of shingles of the chosen texts, each sorted: all values (uint64), and where each set ends."""
    texts = word_forms(texts).texts
    sizes = texts.offsets[chosen + 1] - texts.offsets[chosen]
    values = np.empty(int(sizes.sum()) + 1, np.uint64)
    ends = np.zeros(len(chosen), np.int64)
    room = make_room(int(sizes.max(initial=0)))
    _shingle_sets(texts.data, texts.offsets, chosen.astype(np.int64), n, *room, values, ends)
    start = 0
    for end in ends.tolist():
        values[start:end].sort()  # NumPy's vectorised sort, many times faster than one compiled here
        start = end
    return values[: _compact(values, ends)], ends


def shared_runs(texts: Texts, chosen: Array, values: Array, begins: Array, ends: Array, n: int) -> Array:
    """Where the first run of shingles of each chosen text that stand in another set begins and ends, (chosen, 2) bytes.

    Looks on for at most 64 shingles; the two are equal if there is none. The other set of the i-th text, sorted, is
    `values[begins[i]:ends[i]]`.
    """
    forms = word_forms(texts, origin=True)
    texts, found = forms.texts, np.zeros((len(chosen), 2), np.int64)
    longest = int((texts.offsets[chosen + 1] - texts.offsets[chosen]).max(initial=0))
    room = (*make_room(longest), np.empty(longest + 1, np.uint64))
    _shared_runs(texts.data, texts.offsets, chosen, values, begins, ends, n, *room, found)
    return forms.spans(found)
