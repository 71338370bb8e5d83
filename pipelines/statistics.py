"""What the published heuristics measure of a text: one pass over Arrow's bytes for all of it.

A word is what `str.split()` gives, a line what stands between newlines, stripped, if anything is left, a paragraph a run
of lines without a blank one between. Lengths are in characters (code points), shares in [0, 1]; a text without words or
lines has 0 in every column. `tests/pipelines/test_statistics.py` holds the same in plain Python.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.shingles import U64, Array, Texts, mix, texts_of

# Rae et al. 2021 (Gopher), A.1.1.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = "•‣▶◀◦■□▪▫–-*"
TERMINALS = '.!?"”'  # C4: "a period, exclamation mark, question mark, or end quotation mark"
CLOSERS = "\"'”’)]"  # may follow the end of a sentence
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)

COLUMNS = (
    "words",
    "characters",  # white space included
    "lines",
    "paragraphs",
    "mean_word_length",
    "hash_ratio",  # "#" per word
    "ellipsis_ratio",  # "..." and "…" per word
    "bullet_lines",  # share of lines that start with a bullet
    "ellipsis_lines",  # share of lines that end with an ellipsis
    "alpha_words",  # share of words with at least one letter
    "stop_words",  # how many different ones of the eight
    "terminal_lines",  # share of lines that end with terminal punctuation
    "short_lines",  # share of lines of fewer than 30 characters
    "sentences",  # words that end with ".", "!" or "?", closing quotes and brackets aside
    "duplicate_lines",  # share of lines that stood before
    "duplicate_line_characters",  # characters of those, as a share of all
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    # The most frequent n-gram of words that occurs twice or more (of several the longest): its length, single spaces
    # between its words, times how often it occurs, as a share of all characters.
    *(f"top_{n}gram" for n in TOP_NGRAMS),
    # Going from left to right, an n-gram that was met before counts with the letters of its words and is stepped over.
    *(f"duplicate_{n}grams" for n in DUPLICATE_NGRAMS),
)
COUNTS = ("words", "characters", "lines", "paragraphs", "stop_words", "sentences")
# Measured only where a rule asks for it.
SUBSTRINGS = ("curly_brackets", "lorem_ipsum")
STATISTICS = (*COLUMNS, *SUBSTRINGS)

SPACE, ALPHA, BULLET, TERMINAL, CLOSER, ENDER = 1, 2, 4, 8, 16, 32
HASH = U64(0x9E3779B97F4A7C15)
SHORT_LINE = 30


@cache
def classes() -> Array:
    """Code point -> what Python's `str.isspace` and `str.isalpha` say of it, and the sets above, as bits."""
    table = np.zeros(0x110000, np.uint8)
    for point in range(0x110000):
        character = chr(point)
        if character.isalpha():
            table[point] = ALPHA
        elif character.isspace():
            table[point] = SPACE
    for characters, bit in ((BULLETS, BULLET), (TERMINALS, TERMINAL), (CLOSERS, CLOSER), (".!?", ENDER)):
        table[[ord(c) for c in characters]] |= bit
    return table


@cache
def _stop_hashes() -> Array:
    made = np.zeros(len(STOP_WORDS), np.uint64)
    for i, word in enumerate(STOP_WORDS):
        value = 0
        for character in word:
            value = (value * int(HASH) + ord(character)) % 2**64
        made[i] = value
    return made


@numba.njit(cache=True, nogil=True)
def _insert(keys: Any, counts: Any, mask: int, key: Any) -> Any:
    """The place of a key in an open-addressed table; `counts` tells how often it was inserted, 0 for a free place."""
    slot = np.int64(key & U64(mask))
    while counts[slot] != 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    keys[slot] = key
    counts[slot] += 1
    return slot


@numba.njit(cache=True, nogil=True)
def _duplicates(hashes: Any, lengths: Any, count: int, keys: Any, counts: Any) -> Any:
    """(how many of these stood before, their characters)."""
    mask = _clear(count, counts)
    met = characters = 0
    for i in range(count):
        if counts[_insert(keys, counts, mask, mix(hashes[i]))] > 1:
            met += 1
            characters += lengths[i]
    return met, characters


@numba.njit(cache=True, nogil=True)
def _clear(count: int, counts: Any) -> int:
    """Empty as much of the table as `count` keys need; the mask of that part."""
    size = 16
    while size < 2 * count:
        size *= 2
    counts[:size] = 0
    return size - 1


@numba.njit(cache=True, nogil=True)
def _repetition(
    words: Any, lengths: Any, count: int, characters: int, keys: Any, counts: Any, slots: Any, row: Any
) -> None:
    """Fill the n-gram columns of a row.

    An n-gram that occurs twice holds two (n-1)-grams that do, so with every n only places where both do are looked at:
    in ordinary text next to nothing is left after a few words.
    """
    places = np.empty(count, np.int32)  # where an n-gram that may occur twice begins
    grams = np.empty(count, np.uint64)  # its hash
    width = np.empty(count, np.int32)  # the characters of its words
    left = count
    for i in range(count):
        places[i] = i
        grams[i] = words[i]
        width[i] = lengths[i]
    column = 0
    for n in range(2, 11):
        if n == 2:
            left = max(count - 1, 0)
            for i in range(left):
                grams[i] = mix(words[i] * HASH + words[i + 1])
                width[i] = lengths[i] + lengths[i + 1]
        else:
            kept = 0
            for i in range(left - 1):  # both (n-1)-grams, here and one on, occurred twice
                p = places[i]
                if places[i + 1] == p + 1 and counts[slots[i]] > 1 and counts[slots[i + 1]] > 1:
                    places[kept] = p
                    grams[kept] = mix(grams[i] * HASH + words[p + n - 1])
                    width[kept] = width[i] + lengths[p + n - 1]
                    kept += 1
            left = kept
        if left == 0:
            break
        mask = _clear(left, counts)
        for i in range(left):
            slots[i] = _insert(keys, counts, mask, grams[i])
        if n <= 4:
            best = longest = 0
            for i in range(left):
                times = counts[slots[i]]
                if times > 1 and (times > best or (times == best and width[i] > longest)):
                    best, longest = times, width[i]
            row[column] = best * (longest + n - 1) / characters if best else 0.0
        else:
            repeated = 0
            free = -1  # the place from which on we look again
            for i in range(left):
                if counts[slots[i]] > 1 or counts[slots[i]] < 0:
                    if places[i] < free:
                        continue
                    if counts[slots[i]] < 0:
                        repeated += width[i]
                        free = places[i] + n
                    else:
                        counts[slots[i]] = -counts[slots[i]]  # met once
            for i in range(left):
                counts[slots[i]] = abs(counts[slots[i]])
            row[column] = repeated / characters
        column += 1


@numba.njit(cache=True, nogil=True)
def _measure(data: Any, offsets: Any, table: Any, stops: Any, out: Any) -> None:
    """Write one row of statistics for each text to `out`: (texts, columns) float64."""
    longest = 0
    for t in range(len(out)):
        longest = max(longest, offsets[t + 1] - offsets[t])
    room = longest // 2 + 2
    words, word_lengths = np.empty(room, np.uint64), np.empty(room, np.int32)
    lines, line_lengths = np.empty(room, np.uint64), np.empty(room, np.int32)
    blocks, block_lengths = np.empty(room, np.uint64), np.empty(room, np.int32)
    size = 16
    while size < 2 * room:
        size *= 2
    keys, counts, slots = np.empty(size, np.uint64), np.empty(size, np.int32), np.empty(room, np.int32)
    for t in range(len(out)):
        row = out[t]
        characters = word_count = line_count = block_count = 0
        letters = sharps = ellipses = alphas = sentences = stop_bits = 0
        bullets = ellipsis_ends = terminals = shorts = 0
        word, word_length, word_classes, main_class = U64(0), 0, 0, 0
        line, line_start, line_end, line_hash, line_class, dots, last = U64(0), -1, 0, U64(0), 0, 0, 0
        dots_at_end, run = 0, 0
        block, block_length, blank = U64(0), 0, True
        i, end = offsets[t], offsets[t + 1]
        while i <= end:
            if i == end:
                point, i = 10, i + 1  # as if the text ended with a newline
                characters -= 1
            else:
                byte = np.int64(data[i])
                if byte < 0x80:
                    point, i = byte, i + 1
                elif byte < 0xE0:
                    point = (byte & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F)
                    i += 2
                elif byte < 0xF0:
                    point = (byte & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F)
                    i += 3
                else:
                    point = (byte & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
                    point |= (np.int64(data[i + 2]) & 0x3F) << 6 | (np.int64(data[i + 3]) & 0x3F)
                    i += 4
            kind = table[point]
            characters += 1
            if kind & 1 == 0:
                word = word * HASH + U64(point)
                word_length += 1
                word_classes |= kind
                main_class = main_class if kind & 16 else kind
                if line_start < 0:
                    line_start = characters
                    bullets += int(kind & 4 != 0)
                    line = U64(0)
                line = line * HASH + U64(point)
                line_hash, line_end, line_class, last = line, characters, kind, point
                sharps += int(point == 35)
                if point == 46:
                    run += 1
                    if run == 3:
                        ellipses += 1
                        run = 0
                    dots += 1
                else:
                    run = dots = 0
                    ellipses += int(point == 0x2026)
                dots_at_end = dots
                continue
            run = dots = 0
            if word_length:
                words[word_count], word_lengths[word_count] = mix(word), word_length
                word_count += 1
                letters += word_length
                alphas += int(word_classes & 2 != 0)
                sentences += int(main_class & 32 != 0)
                if 2 <= word_length <= 4:
                    for k in range(len(stops)):
                        stop_bits |= int(stops[k] == word) << k
                word, word_length, word_classes, main_class = U64(0), 0, 0, 0
            if point != 10:
                line = line * HASH + U64(point)
                continue
            if line_start >= 0:
                length = line_end - line_start + 1
                lines[line_count], line_lengths[line_count] = mix(line_hash), length
                line_count += 1
                ellipsis_ends += int((dots_at_end >= 3) | (last == 0x2026))
                terminals += int(line_class & 8 != 0)
                shorts += int(length < SHORT_LINE)
                if blank:
                    block, block_length, blank = U64(0), -1, False
                block = mix(block * HASH + line_hash)
                block_length += length + 1
                line_start = -1
            else:
                if not blank:
                    blocks[block_count], block_lengths[block_count] = block, block_length
                    block_count += 1
                blank = True
        if not blank:
            blocks[block_count], block_lengths[block_count] = block, block_length
            block_count += 1
        stop_count = 0
        for k in range(len(stops)):
            stop_count += stop_bits >> k & 1
        n, m, whole = max(word_count, 1), max(line_count, 1), max(characters, 1)
        row[0], row[1], row[2], row[3] = word_count, characters, line_count, block_count
        row[4], row[5], row[6] = letters / n, sharps / n, ellipses / n
        row[7], row[8], row[9], row[10] = bullets / m, ellipsis_ends / m, alphas / n, stop_count
        row[11], row[12], row[13] = terminals / m, shorts / m, sentences
        met, repeated = _duplicates(lines, line_lengths, line_count, keys, counts)
        row[14], row[15] = met / m, repeated / whole
        met, repeated = _duplicates(blocks, block_lengths, block_count, keys, counts)
        row[16], row[17] = met / max(block_count, 1), repeated / whole
        _repetition(words, word_lengths, word_count, whole, keys, counts, slots, row[18:])


def measure(column: pa.Array | pa.ChunkedArray, substrings: bool = False) -> pa.Table:
    """One row of `COLUMNS` for each text of a string column; with `substrings`, of `STATISTICS`."""
    texts: Texts = texts_of(column)
    rows = np.zeros((len(texts), len(COLUMNS)))
    _measure(texts.data, texts.offsets, classes(), _stop_hashes(), rows)
    made: dict[str, Any] = {}
    for i, name in enumerate(COLUMNS):
        values = np.ascontiguousarray(rows[:, i])
        made[name] = pa.array(values.astype(np.int64) if name in COUNTS else values)
    if substrings:
        made["curly_brackets"] = pc.call_function("count_substring", [column], pc.MatchSubstringOptions("{"))
        phrase = pc.MatchSubstringOptions("lorem ipsum", ignore_case=True)
        made["lorem_ipsum"] = pc.call_function("count_substring", [column], phrase)
    return pa.table(made)
