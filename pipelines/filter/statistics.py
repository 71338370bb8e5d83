"""What the published heuristics measure of a text: one pass over Arrow's bytes for all of it.

`words` counts the words of `engine.text.words`, as every other stage does. What the published rules say of single words (how long
they are, which are repeated) they say of tokens: what stands between white space, punctuation included, and the single
letters of scripts without spaces (`tokens` there). A line is what stands between newlines, stripped, if anything is
left, a paragraph a run of lines without a blank one between. Lengths are in characters (code points), shares in [0, 1]; a
text without tokens or lines has 0 in every column. `benchmarks/parts/plain_statistics.py` holds the same in plain Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.kernels.characters import statistics_table
from pipelines.kernels.compiled import kernel
from pipelines.texts.columns import Array, Texts, texts_of
from pipelines.texts.forms import word_forms

_count_texts = kernel("pipelines.kernels.text_counts", "count_texts")
_count_words = kernel("pipelines.kernels.word_hashes", "count_words")

# Rae et al. 2021 (Gopher), A.1.1.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)

COLUMNS = (
    "words",
    "characters",  # white space included
    "lines",
    "paragraphs",
    "mean_word_length",
    "hash_ratio",  # "#" per token
    "ellipsis_ratio",  # "..." and "…" per token
    "bullet_lines",  # share of lines that start with a bullet
    "ellipsis_lines",  # share of lines that end with an ellipsis
    "alpha_words",  # share of tokens with at least one letter
    "stop_words",  # how many different ones of the eight
    "terminal_lines",  # share of lines that end with terminal punctuation
    "short_lines",  # share of lines of fewer than 30 characters
    "sentences",  # tokens that end with ".", "!" or "?", closing quotes and brackets aside
    "duplicate_lines",  # share of lines that stood before
    "duplicate_line_characters",  # characters of those, as a share of all
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    # The most frequent n-gram of tokens that occurs twice or more (of several the longest): its length, a space where
    # white space stands between its tokens, times how often it occurs, as a share of all characters.
    *(f"top_{n}gram" for n in TOP_NGRAMS),
    # Going from left to right, an n-gram that was met before counts with the letters of its tokens and is stepped over.
    *(f"duplicate_{n}grams" for n in DUPLICATE_NGRAMS),
)
COUNTS = ("words", "characters", "lines", "paragraphs", "stop_words", "sentences")
# Measured only where a rule asks for it.
SUBSTRINGS = ("curly_brackets", "lorem_ipsum")
STATISTICS = (*COLUMNS, *SUBSTRINGS)

# Words of up to eight bytes are their own hash.
STOP_HASHES = np.array([int.from_bytes(word.encode(), "little") for word in STOP_WORDS], np.uint64)


def measure(column: pa.Array | pa.ChunkedArray, substrings: bool = False) -> pa.Table:
    """One row of `COLUMNS` for each text of a string column; with `substrings`, of `STATISTICS`."""
    texts: Texts = texts_of(column)
    rows = np.zeros((len(texts), len(COLUMNS)))
    forms = word_forms(texts)
    longest = texts.longest() if forms.texts is texts else 3 * texts.longest() // 2 + 2  # some letters are set apart
    _count_texts(texts.data, texts.offsets, statistics_table(), STOP_HASHES, *_room(longest), rows)
    counts = np.zeros(len(texts), np.int64)
    _count_words(forms.texts.data, forms.texts.offsets, np.empty(64, np.uint8), counts)
    rows[:, 0] = counts
    made: dict[str, Any] = {}
    for i, name in enumerate(COLUMNS):
        values = np.ascontiguousarray(rows[:, i])
        made[name] = pa.array(values.astype(np.int64) if name in COUNTS else values)
    if substrings:
        made["curly_brackets"] = pc.call_function("count_substring", [column], pc.MatchSubstringOptions("{"))
        phrase = pc.MatchSubstringOptions("lorem ipsum", ignore_case=True)
        made["lorem_ipsum"] = pc.call_function("count_substring", [column], phrase)
    return pa.table(made)


def _room(longest: int) -> tuple[Array, ...]:
    """What `count_texts` needs for texts of up to so many bytes: the text (and up to two blocks of 64 bytes after it); where
    words begin and end, the words before the end of each line; by blocks, the bytes that go on a character and those before;
    hashes and lengths of words, lines and paragraphs, for words the space before them, too; n-grams; a table of hashes, a power of two, at most half full."""
    half, blocks = longest // 2 + 2, longest // 64 + 2
    table = 1 << max(2 * half - 1, 15).bit_length()
    return (
        np.empty(longest + 128, np.uint8),
        np.empty(half, np.int32), np.empty(half, np.int32), np.empty(longest + 2, np.int32),
        np.empty(blocks, np.uint64), np.empty(blocks, np.int32),
        np.empty(half, np.uint64), np.empty(half, np.int32), np.empty(half, np.int32),
        *(np.empty(half, kind) for _ in range(2) for kind in (np.uint64, np.int32)),
        np.empty(half, np.int32), np.empty(half, np.uint64), np.empty(half, np.int32),
        np.empty(half, np.int32), np.empty(half, np.int32),
        np.empty(table, np.uint64),
    )  # fmt: skip
