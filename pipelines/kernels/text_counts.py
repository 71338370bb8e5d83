"""Words, lines, paragraphs and repeated n-grams of texts, counted in one pass over Arrow's bytes (see
`pipelines.filter.statistics` for what each column means)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.bytemasks import BLOCK, ONE, copy, equals, ones, trailing_zeros, within, word_at, write_bits
from pipelines.kernels.characters import ALPHA, BULLET, CLOSER, MARK_BIT, SPACE, UNIT_BIT
from pipelines.kernels.form_writer import decode
from pipelines.kernels.word_hashes import HIGH, LOW, MULTIPLIER, U64, mix

SHORT_LINE = 30
# Sets a letter of a script without spaces apart, which is a word by itself (see `engine.text.words`): no UTF-8 holds this byte.
APART = 0xFF
TIMES = U64((1 << 28) - 1)


@numba.njit(cache=True, nogil=True, inline="always")
def _insert(table: Any, mask: int, key: Any) -> Any:
    """The place of a key in an open-addressed table; the low bits of what stands there tell how often it was inserted.

    The upper 36 bits of a key are compared, its lowest decide where to look: of two different keys one in 10**11 pairs
    that meet is taken for the other. Eight bytes a place keep twice as many of them in the cache as sixteen.
    """
    slot = np.int64(key & U64(mask))
    tag = key & ~TIMES
    value = table[slot]
    while value != 0 and (value ^ tag) > TIMES:
        slot = (slot + 1) & mask
        value = table[slot]
    table[slot] = (value | tag) + ONE
    return slot


@numba.njit(cache=True, nogil=True)
def _duplicates(hashes: Any, lengths: Any, count: int, table: Any) -> Any:
    """(how many of these stood before, their characters)."""
    mask = _clear(count, table)
    met = characters = 0
    for i in range(count):
        if table[_insert(table, mask, hashes[i])] & TIMES > 1:
            met += 1
            characters += lengths[i]
    return met, characters


@numba.njit(cache=True, nogil=True)
def _clear(count: int, table: Any) -> int:
    """Empty as much of the table as `count` keys need; the mask of that part."""
    size = 16
    while size < 2 * count:
        size *= 2
    table[:size] = 0
    return size - 1


@numba.njit(cache=True, nogil=True)
def _repetition(
    words: Any, lengths: Any, gaps: Any, count: int, characters: int, table: Any, room: Any, row: Any
) -> None:
    """Fill the n-gram columns of a row.

    An n-gram that occurs twice holds two (n-1)-grams that do, so with every n only places where both do are looked at:
    in ordinary text next to nothing is left after a few words.
    """
    # Where an n-gram that may occur twice begins, its hash, its characters (up to four words with the spaces between), its
    # place in the table, how often it occurs.
    places, grams, width, slots, times = room
    left = max(count - 1, 0)
    for i in range(left):
        places[i] = i
        grams[i] = mix(words[i] * MULTIPLIER + words[i + 1])
        width[i] = lengths[i] + gaps[i + 1] + lengths[i + 1]
    for column, n in enumerate(range(2, 11)):
        if n > 2:
            kept = 0
            for i in range(left - 1):  # both (n-1)-grams, here and one on, occurred twice
                p = places[i]
                after = np.intp(p + n - 1) if p + n - 1 < count else np.intp(0)
                both = (places[i + 1] == p + 1) & (times[i] > 1) & (times[i + 1] > 1)
                places[kept] = p
                grams[kept] = mix(grams[i] * MULTIPLIER + words[after])
                width[kept] = width[i] + lengths[after] + (gaps[after] if n <= 4 else 0)
                kept += int(both)
            left = kept
        if left < 2:
            break
        if n == 5:
            for i in range(left):
                width[i] -= gaps[places[i] + 1] + gaps[places[i] + 2] + gaps[places[i] + 3]
        mask = _clear(left, table)
        for i in range(left):
            slots[i] = _insert(table, mask, grams[i])
        for i in range(left):
            times[i] = table[slots[i]] & TIMES
        if n <= 4:
            best = longest = 0
            for i in range(left):
                if times[i] >= max(best, 2) and (times[i] > best or width[i] > longest):
                    best, longest = times[i], width[i]
            row[column] = best * longest / characters if best else 0.0
        else:
            repeated = 0
            free = -1  # the place from which on we look again
            for i in range(left):
                if times[i] > 1 and places[i] >= free:
                    if table[slots[i]] == 0:
                        repeated += width[i]
                        free = places[i] + n
                    else:
                        table[slots[i]] = 0  # met once
            row[column] = repeated / characters


@numba.njit(cache=True, nogil=True)
def _beyond_ascii(text: Any, at: int, table: Any, carried: Any) -> Any:
    """(white space, letters, closers of sentences, ellipses; what of them goes on in the next block) of 64 bytes."""
    space, closer = carried
    letter, over_space, over_closer = U64(0), U64(0), U64(0)
    ellipses = 0
    leads = within(text, at, 0xC0, 0xF7)
    while leads:
        bit = trailing_zeros(leads)
        leads &= leads - ONE
        i = at + bit
        byte = np.int64(text[i])
        if byte < 0xE0:
            point, size = (byte & 0x1F) << 6 | (np.int64(text[i + 1]) & 0x3F), 2
        elif byte < 0xF0:
            point, size = (byte & 0x0F) << 12 | (np.int64(text[i + 1]) & 0x3F) << 6 | (np.int64(text[i + 2]) & 0x3F), 3
        else:
            point = (byte & 0x07) << 18 | (np.int64(text[i + 1]) & 0x3F) << 12
            point |= (np.int64(text[i + 2]) & 0x3F) << 6 | (np.int64(text[i + 3]) & 0x3F)
            size = 4
        kind = table[point]
        if kind & ALPHA:
            letter |= ONE << U64(bit)
        elif kind & (SPACE | CLOSER):
            here = ((ONE << U64(size)) - ONE) << U64(bit)
            there = ((ONE << U64(size)) - ONE) >> U64(BLOCK - bit) if bit + size > BLOCK else U64(0)
            if kind & SPACE:
                space |= here
                over_space = there
            else:
                closer |= here
                over_closer = there
        ellipses += int(point == 0x2026)
    return space, letter, closer, ellipses, (over_space, over_closer)


@numba.njit(cache=True, nogil=True)
def _copy_apart(data: Any, begin: Any, end: Any, table: Any, text: Any) -> Any:
    """Copy a text, with `APART` where a letter of a script without spaces touches another character; the bytes written."""
    i, o = begin, 0
    after_unit, after_space = False, True
    while i < end:
        far = within(data, i, 0xE0, 0xF7) if i + BLOCK <= end else ONE
        run = trailing_zeros(far) if far else BLOCK
        if run and not after_unit:  # no letter of these scripts has fewer than three bytes
            copy(data, i, text, o)
            i += run
            o += run
            two = 1 + int(data[i - 1] >= 0x80)
            after_space = table[decode(data, i - two)[0]] & SPACE != 0 if i - two >= begin else False
            continue
        point, size = decode(data, i)
        kind = table[point]
        if (kind & UNIT_BIT and not after_space) or (after_unit and not kind & (UNIT_BIT | MARK_BIT | SPACE)):
            text[o] = APART
            o += 1
        after_unit = bool(kind & UNIT_BIT) or (after_unit and bool(kind & MARK_BIT))
        after_space = bool(kind & SPACE)
        for k in range(size):
            text[o + k] = data[i + k]
        i += size
        o += size
    return o


@numba.njit(cache=True, nogil=True)
def _scan(text: Any, size: int, table: Any, room: Any) -> Any:
    """Words and lines of a text, and what can be counted without looking at single words.

    A number added to a mask carries through a run of ones and comes out where the run ends, so that one addition tells
    which of 64 bytes' words have a letter in them, or end a sentence.

    Args:
        text: followed by 64 zeros at least.
        room: out: where words begin and end; the words before the end of each line; by blocks of 64 bytes, the bytes
            that begin no character, and how many those are in all blocks before.

    Returns:
        words, lines (empty ones, too), characters, "#", ellipses, words with a letter, words that end a sentence.
    """
    starts, ends, line_words, inner, inner_before = room
    begun = ended = lines = 0
    going_on = sharps = ellipses = alphas = sentences = 0
    inside = lettered = ended_sentence = U64(0)
    dots_before = U64(0)  # the last two bytes of the block before, shifted to the front
    last_ellipsis = -3
    carried = U64(0), U64(0)
    for at in range(0, size + 1, BLOCK):
        space = within(text, at, 9, 13) | within(text, at, 28, 31) | equals(text, at, 32)
        letter = within(text, at, 0x61, 0x7A) | within(text, at, 0x41, 0x5A)
        closer = equals(text, at, 0x22) | equals(text, at, 0x27) | equals(text, at, 0x29) | equals(text, at, 0x5D)
        inner_before[at // BLOCK] = going_on
        inner[at // BLOCK] = 0
        if within(text, at, 0x80, 0xFF) | carried[0] | carried[1]:
            more_space, more_letter, more_closer, found, carried = _beyond_ascii(text, at, table, carried)
            space |= more_space
            letter |= more_letter
            closer |= more_closer
            ellipses += found
            apart = equals(text, at, APART)
            space |= apart
            inner[at // BLOCK] = within(text, at, 0x80, 0xBF) | apart
            going_on += ones(inner[at // BLOCK])
        valid = ~U64(0) if at + BLOCK <= size else (ONE << U64(size - at)) - ONE
        word = ~space & valid
        before = word << ONE | inside
        begin, end = word & ~before, before & ~word
        inside = word >> U64(63)

        newlines = equals(text, at, 10)
        while newlines:
            bit = newlines & (~newlines + ONE)
            newlines ^= bit
            line_words[lines] = begun + ones(begin & (bit - ONE))
            lines += 1
        begun = write_bits(begin, at, starts, begun)
        ended = write_bits(end, at, ends, ended)

        through = word + (letter | lettered)
        lettered = U64(through < word)
        alphas += ones(end & through)
        dots = equals(text, at, 0x2E)
        stop = dots | equals(text, at, 0x21) | equals(text, at, 0x3F)
        after = stop << ONE | ended_sentence
        through = closer + after
        ended_sentence = stop >> U64(63) | U64(through < closer)
        sentences += ones(end & through)

        third = dots & (dots << ONE | dots_before >> ONE) & (dots << U64(2) | dots_before)
        dots_before = dots >> U64(62)
        while third:  # the last of three dots
            place = at + trailing_zeros(third)
            third &= third - ONE
            if place - last_ellipsis >= 3:
                ellipses += 1
                last_ellipsis = place
        sharps += ones(equals(text, at, 0x23))
    line_words[lines] = begun
    return begun, lines + 1, size - going_on, sharps, ellipses, alphas, sentences


@numba.njit(cache=True, nogil=True)
def _hash(text: Any, start: Any, end: Any) -> Any:
    """A hash of these bytes; they are their own if there are at most eight."""
    short = min(end - start, 16)
    h = word_at(text, np.intp(start)) & LOW[short]
    h += (word_at(text, np.intp(start + 8)) & HIGH[short]) * MULTIPLIER
    if end - start > 16:
        for i in range(start + 16, end, 8):
            h = mix(h) + (word_at(text, np.intp(i)) & LOW[min(end - i, 8)])
        h = mix(h + U64(end - start))
    return h


@numba.njit(cache=True, nogil=True)
def _inner_until(place: Any, inner: Any, inner_before: Any) -> int:
    """How many bytes before this one begin no character."""
    return inner_before[place // BLOCK] + ones(inner[place // BLOCK] & ((ONE << U64(place % BLOCK)) - ONE))


@numba.njit(cache=True, nogil=True)
def count_texts(
    data: Any, offsets: Any, table: Any, stops: Any,
    text: Any, starts: Any, ends: Any, line_words: Any, inner: Any, inner_before: Any,
    words: Any, word_lengths: Any, gaps: Any, lines: Any, line_lengths: Any, blocks: Any, block_lengths: Any,
    places: Any, grams: Any, width: Any, slots: Any, times: Any, hashes: Any,
    out: Any,
) -> None:  # fmt: skip
    """Write one row of statistics for each text to `out`: (texts, columns) float64.

    Args:
        table: code point -> bits of its kinds (`SPACE`, `ALPHA`, ...).
        stops: (S,) uint64: stop words as their own hashes.
        text, ..., hashes: room for the longest text, as `pipelines.filter.statistics` makes it.
    """
    for t in range(len(out)):
        row = out[t]
        size = _copy_apart(data, offsets[t], offsets[t + 1], table, text)
        text[size : size + 2 * BLOCK - size % BLOCK] = 0
        word_count, row_count, characters, sharps, ellipses, alphas, sentences = _scan(
            text, size, table, (starts, ends, line_words, inner, inner_before)
        )
        ascii_only = characters == size
        letters = 0
        for i in range(word_count):
            word_lengths[i] = ends[i] - starts[i]
        if not ascii_only:
            for i in range(word_count):
                word_lengths[i] -= _inner_until(ends[i], inner, inner_before) - _inner_until(
                    starts[i], inner, inner_before
                )
        for i in range(word_count):
            letters += word_lengths[i]
            words[i] = _hash(text, starts[i], ends[i])
            gaps[i] = int(text[max(starts[i] - 1, 0)] != APART)
        stop_count = 0
        for stop in stops:
            met_stop = 0
            for i in range(word_count):
                met_stop |= int(words[i] == stop)
            stop_count += met_stop
        for i in range(word_count):
            words[i] = mix(words[i])

        line_count = block_count = bullets = ellipsis_ends = terminals = shorts = 0
        block, block_length, blank = U64(0), 0, True
        first = 0
        for k in range(row_count):
            after = line_words[k]
            if after == first:
                if not blank:
                    blocks[block_count], block_lengths[block_count] = block, block_length
                    block_count += 1
                blank = True
                continue
            start, end = starts[first], ends[after - 1]
            first = after
            length = end - start
            if not ascii_only:
                length -= _inner_until(end, inner, inner_before) - _inner_until(start, inner, inner_before)
            line = mix(_hash(text, start, end))
            lines[line_count], line_lengths[line_count] = line, length
            line_count += 1
            shorts += int(length < SHORT_LINE)
            last = text[end - 1]
            ending = U64(0)  # the last three bytes
            if end - start >= 3:
                ending = U64(text[end - 3]) << U64(16) | U64(text[end - 2]) << U64(8) | U64(last)
            ellipsis_ends += int((ending == 0x2E2E2E) | (ending == 0xE280A6))
            terminals += int((last == 0x2E) | (last == 0x21) | (last == 0x3F) | (last == 0x22) | (ending == 0xE2809D))
            lead = np.int64(text[start])
            if lead >= 0xE0 and lead < 0xF0:
                point = (
                    (lead & 0x0F) << 12 | (np.int64(text[start + 1]) & 0x3F) << 6 | (np.int64(text[start + 2]) & 0x3F)
                )
                bullets += int(table[point] & BULLET != 0)
            elif lead < 0x80:
                bullets += int(table[lead] & BULLET != 0)
            if blank:
                block, block_length, blank = U64(0), -1, False
            block = mix(block * MULTIPLIER + line)
            block_length += length + 1
        if not blank:
            blocks[block_count], block_lengths[block_count] = block, block_length
            block_count += 1

        n, m, whole = max(word_count, 1), max(line_count, 1), max(characters, 1)
        row[0], row[1], row[2], row[3] = word_count, characters, line_count, block_count
        row[4], row[5], row[6] = letters / n, sharps / n, ellipses / n
        row[7], row[8], row[9], row[10] = bullets / m, ellipsis_ends / m, alphas / n, stop_count
        row[11], row[12], row[13] = terminals / m, shorts / m, sentences
        met, repeated = _duplicates(lines, line_lengths, line_count, hashes)
        row[14], row[15] = met / m, repeated / whole
        met, repeated = _duplicates(blocks, block_lengths, block_count, hashes)
        row[16], row[17] = met / max(block_count, 1), repeated / whole
        _repetition(
            words, word_lengths, gaps, word_count, whole, hashes, (places, grams, width, slots, times), row[18:]
        )
