"""What evaluation rows and training rows have in common: passages word for word, and texts that are nearly the same.

A passage is `ngram` words in a row (words as in `pipelines.texts.shingles`); an evaluation row of fewer words is one passage, the
whole of it. Evaluation sets are small beside training data, so all their passages are held in memory and training text
streams past them: every place is looked up by a rolling hash of 64 bits, and what is found is compared word for word.
Nearly the same is a Jaccard similarity of the sets of word 5-grams, which MinHash would estimate; with every shingle of the
evaluation rows in an index there is no need to estimate it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pyarrow as pa

from pipelines.kernels.shingles import MULTIPLIER, U64, hash_words, make_room, mix
from pipelines.texts.shingles import Array, jaccard, texts_of, words

SHINGLE = 5
BITS_A_KEY = 16


@dataclass(frozen=True)
class Touch:
    """A training text and an evaluation row: what they share word for word, or how like each other they are."""

    row: int
    passage: str
    similarity: float | None = None


class Passages:
    """Evaluation rows, by the hashes of their passages.

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
        found = [words(text) for text in self.texts]
        self.too_short = sum(len(w) < min_words for w in found)
        looked_for = [(row, w) for row, w in enumerate(found) if len(w) >= min_words]
        self.exact = _Index.make([(row, min(ngram, len(w))) for row, w in looked_for], self.texts)
        shingled = [(row, min(SHINGLE, len(w))) for row, w in looked_for] if near is not None else []
        self.shingles = _Index.make(shingled, self.texts)
        self.shingle_counts = {row: len({tuple(w[i : i + SHINGLE]) for i in range(max(len(w) - SHINGLE + 1, 1))})
                               for row, w in looked_for} if near is not None else {}  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def touches(self, texts: list[str]) -> list[list[Touch]]:
        """For each text the evaluation rows it touches: those it shares a passage with, then those it is nearly the same as."""
        column = texts_of(pa.array(texts, pa.large_string()))
        told: list[list[Touch]] = [[] for _ in texts]
        known = np.zeros(len(self.ids), bool)
        for t, places in self.exact.look_up(column.data, column.offsets).items():
            found = words(texts[t])
            for start, width, entry in {place[2]: place for place in places}.values():
                rows, at = self.exact.owners(entry)
                passage = found[start : start + width]
                if passage != self._words(int(rows[0]))[at[0] : at[0] + width]:
                    continue  # another passage with the same hash
                new = np.unique(rows[~known[rows]])
                known[new] = True
                told[t] += [Touch(row, " ".join(passage)) for row in new.tolist()]
            known[[touch.row for touch in told[t]]] = False
        if self.near is not None:
            for t, places in self.shingles.look_up(column.data, column.offsets).items():
                common: dict[int, int] = defaultdict(int)
                for entry in {entry for _, _, entry in places}:
                    for row in np.unique(self.shingles.owners(entry)[0]).tolist():
                        common[row] += 1
                touched = {touch.row for touch in told[t]}
                for row, count in sorted(common.items()):
                    # The union is no smaller than the row's own set.
                    if row not in touched and count >= self.near * self.shingle_counts[row]:
                        like = jaccard(texts[t], self.texts[row], SHINGLE)
                        if like >= self.near:
                            told[t].append(Touch(row, "", like))
        return told

    def _words(self, row: int) -> list[str]:
        if row not in self._words_of:
            self._words_of[row] = words(self.texts[row])
        return self._words_of[row]


@dataclass(frozen=True)
class _Index:
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
    def make(chosen: list[tuple[int, int]], texts: list[str]) -> _Index:
        """Index all passages of the chosen (row, width)."""
        column = texts_of(pa.array([texts[row] for row, _ in chosen], pa.large_string()))
        width = np.array([w for _, w in chosen], np.int64)
        room = int(column.offsets[-1] - column.offsets[0]) + 1
        hashes, owner, place = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
        count = _passages(column.data, column.offsets, width, hashes, owner, place)
        known, entry = np.unique(hashes[:count], return_inverse=True)
        order = np.argsort(entry, kind="stable")
        begins = np.searchsorted(entry[order], np.arange(len(known) + 1))
        size = 1 << max(4, int(2 * len(known)).bit_length())
        keys, entries = np.zeros(size, np.uint64), np.full(size, -1, np.int64)
        bits = np.zeros(size * BITS_A_KEY // 2 // 8, np.uint8)
        _fill(known, keys, entries, bits)
        rows = np.array([row for row, _ in chosen], np.int64)
        return _Index(np.unique(width), keys, entries, bits, begins, rows[owner[order]], place[order])

    def owners(self, entry: int) -> tuple[Array, Array]:
        """The rows an entry stands in, and where in each."""
        low, high = self.begins[entry], self.begins[entry + 1]
        return self.rows[low:high], self.places[low:high]

    def look_up(self, data: Array, offsets: Array) -> dict[int, list[tuple[int, int, int]]]:
        """Text -> (first word, width, entry) of every passage found in it."""
        if not len(self.widths) or len(offsets) < 2:
            return {}
        room = 1024
        while True:
            out = np.empty((room, 4), np.int64)
            count = _look_up(data, offsets, self.widths, self.keys, self.entries, self.bits, out)
            if count <= room:
                break
            room = count
        found: dict[int, list[tuple[int, int, int]]] = {}
        for text, start, width, entry in out[:count].tolist():
            found.setdefault(text, []).append((start, width, entry))
        return found


@numba.njit(cache=True, nogil=True)
def _prefixes(data: Any, start: int, end: int, room: Any, buffer: Any, prefix: Any) -> int:
    """Write the hash of the first i words to `prefix[i]`, for every i; return how many words there are."""
    count = hash_words(data, start, end, room, buffer)
    prefix[0] = U64(0)
    for i in range(count):
        prefix[i + 1] = prefix[i] * MULTIPLIER + mix(buffer[i])
    return count


@numba.njit(cache=True, nogil=True)
def _power(width: int) -> Any:
    power = U64(1)
    for _ in range(width):
        power *= MULTIPLIER
    return power


@numba.njit(cache=True, nogil=True)
def _longest(offsets: Any) -> int:
    longest = 0
    for t in range(len(offsets) - 1):
        longest = max(longest, offsets[t + 1] - offsets[t])
    return longest


@numba.njit(cache=True, nogil=True)
def _passages(data: Any, offsets: Any, widths: Any, hashes: Any, owner: Any, place: Any) -> int:
    """Every passage of `widths[t]` words of each text t: its hash, its text, its first word. Returns how many."""
    longest = _longest(offsets)
    room = make_room(longest)
    buffer, prefix = np.empty(longest + 2, np.uint64), np.empty(longest + 2, np.uint64)
    at = 0
    for t in range(len(offsets) - 1):
        count = _prefixes(data, offsets[t], offsets[t + 1], room, buffer, prefix)
        power = _power(widths[t])
        for i in range(count - widths[t] + 1):
            hashes[at] = mix(prefix[i + widths[t]] - prefix[i] * power + U64(widths[t]))
            owner[at], place[at] = t, i
            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _fill(known: Any, keys: Any, entries: Any, bits: Any) -> None:
    mask, bit_mask = U64(len(keys) - 1), U64(8 * len(bits) - 1)
    for e in range(len(known)):
        h = known[e]
        slot = np.int64(h & mask)
        while entries[slot] >= 0:
            slot = (slot + 1) & np.int64(mask)
        keys[slot], entries[slot] = h, e
        bit = np.int64((h >> U64(20)) & bit_mask)
        bits[bit >> 3] |= np.uint8(1 << (bit & 7))


@numba.njit(cache=True, nogil=True)
def _look_up(data: Any, offsets: Any, widths: Any, keys: Any, entries: Any, bits: Any, out: Any) -> int:
    """Write (text, first word, width, entry) of what is found as far as there is room; return how much was found."""
    longest = _longest(offsets)
    room = make_room(longest)
    buffer, prefix = np.empty(longest + 2, np.uint64), np.empty(longest + 2, np.uint64)
    mask, bit_mask = U64(len(keys) - 1), U64(8 * len(bits) - 1)
    found = 0
    for t in range(len(offsets) - 1):
        count = _prefixes(data, offsets[t], offsets[t + 1], room, buffer, prefix)
        for w in range(len(widths) - 1, -1, -1):
            width = widths[w]
            power = _power(width)
            for i in range(count - width + 1):
                h = mix(prefix[i + width] - prefix[i] * power + U64(width))
                bit = np.int64((h >> U64(20)) & bit_mask)
                if bits[bit >> 3] >> np.uint8(bit & 7) & 1 == 0:
                    continue
                slot = np.int64(h & mask)
                while entries[slot] >= 0 and keys[slot] != h:
                    slot = (slot + 1) & np.int64(mask)
                if entries[slot] >= 0:
                    if found < len(out):
                        out[found, 0], out[found, 1], out[found, 2], out[found, 3] = t, i, width, entries[slot]
                    found += 1
    return found
