"""What evaluation rows and training rows have in common: passages word for word, and texts that are nearly the same.

A passage is `ngram` words in a row, or as many letters of a script without spaces as weigh the same (see `engine.text.words`);
an evaluation row of fewer words is one passage, the whole of it. Evaluation sets are small beside training data, so all their passages are held in memory and training text
streams past them: every place is looked up by a rolling hash of 64 bits, and what is found is compared word for word.
Nearly the same is a Jaccard similarity of the sets of word 5-grams, which MinHash would estimate; with every shingle of the
evaluation rows in an index there is no need to estimate it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa

from engine.stage.exchange import Exchange
from engine.text.words import weight, words
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts, texts_of
from pipelines.texts.forms import word_forms
from pipelines.texts.shingles import jaccard, make_room

_passages = kernel("pipelines.kernels.passage_index", "passages")
_fill = kernel("pipelines.kernels.passage_index", "fill")
_look_up = kernel("pipelines.kernels.passage_index", "look_up")

SHINGLE = 5
BITS_A_KEY = 16
KINDS: dict[str, type[np.generic]] = {  # of the arrays of an index
    "widths": np.int64, "keys": np.uint64, "entries": np.int64, "bits": np.uint8,
    "begins": np.int64, "rows": np.int64, "places": np.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Touch:
    """A training text and an evaluation row: what they share word for word, or how like each other they are."""

    row: int
    passage: str
    similarity: float | None = None


class Passages:
    """Evaluation rows, by the hashes of their passages. Sent to another process it goes without them, to be opened there (`put`, `open`).

    Args:
        rows: (id, text) of each evaluation row.
        ngram: words of a passage.
        min_words: rows of fewer are not looked for.
        near: the Jaccard similarity from which a text is nearly the same as a row; None: only passages count.
    """

    def __init__(
        self, rows: Iterable[tuple[str, str]], ngram: int = 13, min_words: int = 5, near: float | None = None
    ) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self._words_of: dict[int, list[str]] = {}  # of rows that were touched
        self.ngram, self.near = ngram, near
        for identity, text in rows:
            self.ids.append(identity)
            self.texts.append(text)
        words_of = [words(text) for text in self.texts]
        looked_for = [(row, w) for row, w in enumerate(words_of) if weight(w) >= min_words]
        self.too_short = len(words_of) - len(looked_for)
        self.exact = NgramIndex.make([(row, _width(w, ngram)) for row, w in looked_for], self.texts)
        shingled = [(row, min(SHINGLE, len(w))) for row, w in looked_for] if near is not None else []
        self.shingles = NgramIndex.make(shingled, self.texts)
        self.shingle_counts = {row: len({tuple(w[i : i + SHINGLE]) for i in range(max(len(w) - SHINGLE + 1, 1))})
                               for row, w in looked_for} if near is not None else {}  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("exact", "shingles", "_words_of")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _words_of={})

    def put(self, exchange: Exchange) -> None:
        """Put the hashes where all processes of a stage reach them: those of one machine share the pages."""
        for name, index in (("exact", self.exact), ("shingles", self.shingles)):
            for field, kind in KINDS.items():
                exchange.put_array(
                    f"passages/{name}/{field}", getattr(index, field).astype(kind, copy=False), kept=False
                )

    def open(self, exchange: Exchange) -> Passages:
        """This, with the hashes that were put there."""
        self.exact, self.shingles = (
            NgramIndex(**{field: exchange.array(f"passages/{name}/{field}", kind) for field, kind in KINDS.items()})
            for name in ("exact", "shingles")
        )
        return self

    def touches(self, texts: list[str]) -> list[list[Touch]]:
        """For each text the evaluation rows it touches: those it shares a passage with, then those it is nearly the same as."""
        column = word_forms(texts_of(pa.array(texts, pa.large_string()))).texts
        touches: list[list[Touch]] = [[] for _ in texts]
        known = np.zeros(len(self.ids), bool)
        for t, places in self.exact.look_up(column).items():
            text_words = words(texts[t])
            for start, width, entry in {place[2]: place for place in places}.values():
                rows, at = self.exact.owners(entry)
                passage = text_words[start : start + width]
                if passage != self._words(int(rows[0]))[at[0] : at[0] + width]:
                    continue  # another passage with the same hash
                new = np.unique(rows[~known[rows]])
                known[new] = True
                touches[t] += [Touch(row, " ".join(passage)) for row in new.tolist()]
            known[[touch.row for touch in touches[t]]] = False
        if self.near is not None:
            for t, places in self.shingles.look_up(column).items():
                common: dict[int, int] = defaultdict(int)
                for entry in {entry for _, _, entry in places}:
                    for row in np.unique(self.shingles.owners(entry)[0]).tolist():
                        common[row] += 1
                touched = {touch.row for touch in touches[t]}
                for row, count in sorted(common.items()):
                    # The union is no smaller than the row's own set.
                    if row not in touched and count >= self.near * self.shingle_counts[row]:
                        like = jaccard(texts[t], self.texts[row], SHINGLE)
                        if like >= self.near:
                            touches[t].append(Touch(row, "", like))
        return touches

    def _words(self, row: int) -> list[str]:
        if row not in self._words_of:
            self._words_of[row] = words(self.texts[row])
        return self._words_of[row]


@dataclass(frozen=True)
class NgramIndex:
    """Hashes of passages of several widths, open-addressed behind a bitmap; each with the rows and places it stands at.

    Attributes:
        widths: the widths that occur.
        keys, entries: hash -> entry, -1 for a free slot.
        bits: one bit a hash, so that nearly every place is passed over after one look.
        begins, rows, places: entry e stands in `rows[begins[e]:begins[e + 1]]` at the words `places[...]`.
    """

    widths: Array
    keys: Array
    entries: Array
    bits: Array
    begins: Array
    rows: Array
    places: Array

    @staticmethod
    def make(chosen: list[tuple[int, int]], texts: list[str]) -> NgramIndex:
        """Index all passages of the chosen (row, width)."""
        column = word_forms(texts_of(pa.array([texts[row] for row, _ in chosen], pa.large_string()))).texts
        width = np.array([w for _, w in chosen], np.int64)
        room = int(column.offsets[-1] - column.offsets[0]) + 1
        hashes, owner, place = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
        count = _passages(column.data, column.offsets, width, *_room(column), hashes, owner, place)
        known, entry = np.unique(hashes[:count], return_inverse=True)
        order = np.argsort(entry, kind="stable")
        begins = np.searchsorted(entry[order], np.arange(len(known) + 1))
        size = 1 << max(4, int(2 * len(known)).bit_length())
        keys, entries = np.zeros(size, np.uint64), np.full(size, -1, np.int64)
        bits = np.zeros(size * BITS_A_KEY // 2 // 8, np.uint8)
        _fill(known, keys, entries, bits)
        rows = np.array([row for row, _ in chosen], np.int64)
        return NgramIndex(np.unique(width), keys, entries, bits, begins, rows[owner[order]], place[order])

    def owners(self, entry: int) -> tuple[Array, Array]:
        """The rows an entry stands in, and where in each."""
        low, high = self.begins[entry], self.begins[entry + 1]
        return self.rows[low:high], self.places[low:high]

    def look_up(self, texts: Texts) -> dict[int, list[tuple[int, int, int]]]:
        """Text (of word forms) -> (first word, width, entry) of every passage in it that is indexed."""
        if not len(self.widths) or not len(texts):
            return {}
        most, room = 1024, _room(texts)
        while True:
            out = np.empty((most, 4), np.int64)
            count = _look_up(
                texts.data, texts.offsets, self.widths, self.keys, self.entries, self.bits, *room, out
            )  # fmt: skip
            if count <= most:
                break
            most = count
        places: dict[int, list[tuple[int, int, int]]] = {}
        for text, start, width, entry in out[:count].tolist():
            places.setdefault(text, []).append((start, width, entry))
        return places


def _width(found: list[str], ngram: int) -> int:
    """How many of a row's words make a passage that weighs as much as `ngram` words of a language with spaces."""
    return min(len(found), ceil(ngram * len(found) / weight(found) - 1e-9))


def _room(texts: Texts) -> tuple[Array, ...]:
    """What the kernels need for the longest of these texts."""
    longest = texts.longest()
    return *make_room(longest), np.empty(longest + 2, np.uint64)
