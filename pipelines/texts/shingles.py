"""Words and shingles: what near-duplicate detection compares, over Arrow's offsets and bytes without Python strings.

A word, in terms of characters:
  - ASCII letters (compared without case), digits and `_`, and every other character from U+00C0 on, stand in words;
  - other ASCII, U+0080-U+00BF and U+2000-U+2FFF (spaces, quotes, dashes, symbols) separate words;
  - a character of U+3000-U+DFFF or U+F000-U+FFFF (kana, Han, Hangul) begins a new word.
A shingle is `n` words in a row; a text of 1 to `n` words has one shingle, all its words. The Jaccard similarity of two
texts is that of their sets of shingles. A shingle is known by 64 bits: two different ones among a million are equal
with probability 3e-8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.kernels.compiled import kernel

Array = np.ndarray[Any, np.dtype[Any]]
_shingle_sets = kernel("pipelines.kernels.word_hashes", "shingle_sets")
_compact = kernel("pipelines.kernels.word_hashes", "compact")
_shared_runs = kernel("pipelines.kernels.word_hashes", "shared_runs")

WORD = re.compile(
    "[\u3000-\ud7ff\uf000-\uffff][0-9A-Za-z_\u00c0-\u1fff\ue000-\uefff\U00010000-\U0010ffff]*"
    "|[0-9A-Za-z_\u00c0-\u1fff\ue000-\uefff\U00010000-\U0010ffff]+"
)


def words(text: str) -> list[str]:
    """The words of a text: the definition in plain Python, which the kernels are tested against."""
    return [word.encode().lower().decode() for word in WORD.findall(text)]


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The set of shingles of a text; empty for a text without words."""
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, min(len(found), 1)))}


def jaccard(a: str, b: str, n: int) -> float:
    """|A and B| / |A or B| of the two texts' shingles; 0 if neither has any."""
    one, two = shingles(a, n), shingles(b, n)
    return len(one & two) / max(len(one | two), 1)


@dataclass(frozen=True)
class Texts:
    """A column of texts as Arrow holds it: text i is `data[offsets[i]:offsets[i + 1]]`."""

    data: Array
    offsets: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def longest(self) -> int:
        """Bytes of the longest text."""
        return int(np.diff(self.offsets).max(initial=0))


def texts_of(column: pa.Array | pa.ChunkedArray) -> Texts:
    """View a string column without a copy (chunks are joined; null is the empty text)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if column.null_count:
        column = column.fill_null("")
    large = pa.types.is_large_string(column.type)
    _, offsets, data = column.buffers()
    if not len(column):
        return Texts(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    at = np.frombuffer(offsets, np.int64 if large else np.int32)[column.offset : column.offset + len(column) + 1]
    bytes_ = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return Texts(bytes_, at.astype(np.int64, copy=False))


def make_room(longest: int) -> tuple[Array, ...]:
    """What kernels need to find the words of texts of up to so many bytes: the text in lower case (and up to two blocks
    of 64 bytes after it), where words begin, where they end, their hashes."""
    places = longest + 1
    return (
        np.empty(longest + 128, np.uint8), np.empty(places, np.int32), np.empty(places, np.int32),
        np.empty(places, np.uint64),
    )  # fmt: skip


def sorted_sets(texts: Texts, chosen: Array, n: int) -> tuple[Array, Array]:
    """The sets of shingles of the chosen texts, each sorted: all values (uint64), and where each set ends."""
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
    found = np.zeros((len(chosen), 2), np.int64)
    longest = int((texts.offsets[chosen + 1] - texts.offsets[chosen]).max(initial=0))
    room = (*make_room(longest), np.empty(longest + 1, np.uint64))
    _shared_runs(texts.data, texts.offsets, chosen, values, begins, ends, n, *room, found)
    return found
