"""The forms under which texts are compared, written from UTF-8 to UTF-8 (see `engine.text` for what they are).

    words   the words of the normal form with spaces between, ASCII as it stands: `find_words` finds in it the words of the text
    whole   the normal form itself, white space collapsed

Both are decomposed where `engine.text` composes, which compares the same. Letters of a word are in one stretch; a character
may be replaced by several, of several words. With `origin`, every byte of a form knows the character that it stands for.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.bytemasks import BLOCK, ONE, copy, copy_lower, equals, trailing_zeros, within
from pipelines.kernels.form_table import CLASS, CLASS_BITS, KIND, KIND_BITS, LETTER, MARK, OTHER, SPACE, UNIT

# More marks than these are left in their order: the limit of UAX #15's stream-safe text, which no language reaches.
MARKS = 30


@numba.njit(cache=True, nogil=True)
def decode(data: Any, at: Any) -> Any:
    """(code point, bytes) of the character that begins here."""
    byte = np.int64(data[at])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        return (byte & 0x1F) << 6 | (np.int64(data[at + 1]) & 0x3F), 2
    point = (np.int64(data[at + 1]) & 0x3F) << 6 | (np.int64(data[at + 2]) & 0x3F)
    if byte < 0xF0:
        return (byte & 0x0F) << 12 | point, 3
    return (byte & 0x07) << 18 | point << 6 | (np.int64(data[at + 3]) & 0x3F), 4


@numba.njit(cache=True, nogil=True)
def _encode(point: Any, out: Any, at: Any) -> int:
    """Write a character; where the next one goes."""
    if point < 0x80:
        out[at] = point
        return at + 1
    if point < 0x800:
        out[at], out[at + 1] = 0xC0 | point >> 6, 0x80 | point & 0x3F
        return at + 2
    if point < 0x10000:
        out[at], out[at + 1], out[at + 2] = 0xE0 | point >> 12, 0x80 | point >> 6 & 0x3F, 0x80 | point & 0x3F
        return at + 3
    out[at], out[at + 1] = 0xF0 | point >> 18, 0x80 | point >> 12 & 0x3F
    out[at + 2], out[at + 3] = 0x80 | point >> 6 & 0x3F, 0x80 | point & 0x3F
    return at + 4


@numba.njit(cache=True, nogil=True)
def _combining_class(point: Any, entries: Any) -> Any:
    return np.int64(entries[point]) >> KIND_BITS & CLASS


@numba.njit(cache=True, nogil=True)
def _put(point: Any, source: Any, entries: Any, out: Any, begin: Any, at: Any, origin: Any) -> int:
    """Write a character of the byte `source` to a form that begins at `begin`; a mark goes before those of a higher class
    (canonical ordering, UAX #15)."""
    place = at
    order = _combining_class(point, entries)
    if order:
        for _ in range(MARKS):
            before = place - 1
            while before > begin and out[before] & 0xC0 == 0x80:
                before -= 1
            if before < begin or _combining_class(decode(out, before)[0], entries) <= order:
                break
            place = before
    end = _encode(point, out, at)
    size = end - at
    if place < at:
        for i in range(at - 1, place - 1, -1):
            out[i + size] = out[i]
        _encode(point, out, place)
    if len(origin):  # of marks that changed places, all stand for the last: a word ends where the last of them does
        origin[place:end] = source
    return end


@numba.njit(cache=True, nogil=True)
def _put_byte(byte: Any, source: Any, out: Any, at: Any, origin: Any) -> int:
    out[at] = byte
    if len(origin):
        origin[at] = source
    return at + 1


@numba.njit(cache=True, nogil=True)
def _is_ascii_word(byte: Any) -> bool:
    return 0x61 <= byte <= 0x7A or 0x41 <= byte <= 0x5A or 0x30 <= byte <= 0x39 or byte == 0x5F


@numba.njit(cache=True, nogil=True)
def word_forms(data: Any, offsets: Any, entries: Any, pool: Any, out: Any, ends: Any, origin: Any) -> int:
    """Write the words of each text, text after text, followed by a space; return how many bytes there are.

    Args:
        entries, pool: `pipelines.kernels.form_table`.
        out: room for `GROWTH` times the bytes beyond ASCII, for the others once, and for 64 more and one a text.
        ends: (texts,) int64, out: where each form ends.
        origin: int64, out, as long as `out`: where in `data` the character begins that a byte stands for; or empty.
    """
    o = 0
    for t in range(len(ends)):
        begin = o
        i, end = offsets[t], offsets[t + 1]
        last = OTHER  # what the form ends with: a word (LETTER), a unit, or what separates words
        torn, unit_end = False, o  # after a unit and white space: a line break may have torn a mark off the unit
        while i < end:
            if data[i] < 0x80:
                if i + BLOCK <= end:
                    beyond = within(data, i, 0x80, 0xFF)
                    run = trailing_zeros(beyond) if beyond else BLOCK
                    if last == UNIT:
                        torn, unit_end = True, o
                        o = _put_byte(0x20, i, out, o, origin)
                    if torn:
                        text = ~(within(data, i, 9, 13) | equals(data, i, 0x20))
                        torn = (trailing_zeros(text) if text else BLOCK) >= run
                    copy(data, i, out, o)
                    if len(origin):
                        for k in range(run):
                            origin[o + k] = i + k
                    i += run
                    o += run
                else:
                    if last == UNIT:
                        torn, unit_end = True, o
                        o = _put_byte(0x20, i, out, o, origin)
                    torn = torn and (data[i] == 0x20 or 9 <= data[i] <= 13)
                    o = _put_byte(data[i], i, out, o, origin)
                    i += 1
                last = LETTER if _is_ascii_word(data[i - 1]) else OTHER
                continue
            point, size = decode(data, i)
            folding = np.int64(entries[point]) >> (KIND_BITS + CLASS_BITS)
            for k in range(np.int64(pool[folding]) if folding else 1):
                if folding:
                    point = np.int64(pool[folding + 1 + k])
                kind = np.int64(entries[point]) & KIND
                if kind == MARK:
                    if torn:
                        o, last, torn = unit_end, UNIT, False
                    if last != OTHER:
                        o = _put(point, i, entries, out, begin, o, origin)
                elif kind in (LETTER, UNIT):
                    torn = False
                    if last == UNIT or (kind == UNIT and last != OTHER):
                        o = _put_byte(0x20, i, out, o, origin)
                    o = _put(point, i, entries, out, begin, o, origin)
                    last = kind
                else:
                    if last == UNIT:
                        torn, unit_end = True, o
                    torn = torn and kind == SPACE
                    if last != OTHER:
                        o = _put_byte(0x20, i, out, o, origin)
                    last = OTHER
            i += size
        if o > begin:
            o = _put_byte(0x20, end, out, o, origin)  # so that the last word ends before something that has a place
        ends[t] = o
    return o


@numba.njit(cache=True, nogil=True)
def whole_forms(
    data: Any, offsets: Any, entries: Any, pool: Any, newlines: int, out: Any, ends: Any, origin: Any
) -> int:  # fmt: skip
    """Write the normal form of each text with white space collapsed; return how many bytes there are.

    White space between two characters is one space, and none beside a unit: scripts without spaces break lines anywhere.

    Args:
        newlines: white space with so many line feeds or more becomes one line feed; 0: never.
        entries, pool, out, ends, origin: as in `word_forms`; the first two are not looked at for ASCII.
    """
    o = 0
    for t in range(len(ends)):
        begin = o
        i, end = offsets[t], offsets[t + 1]
        spaces = feeds = 0  # since the last character that is none
        last = OTHER
        while i < end:
            if spaces == 0 and data[i] < 0x80 and i + BLOCK <= end:  # up to what is not ASCII with single spaces
                space = within(data, i, 9, 13) | equals(data, i, 0x20)
                odd = within(data, i, 0x80, 0xFF) | within(data, i, 9, 13) | (space & (space << ONE | ONE))
                run = trailing_zeros(odd) if odd else BLOCK
                if run:
                    copy_lower(data, i, out, o)
                    if len(origin):
                        for k in range(run):
                            origin[o + k] = i + k
                    i += run
                    spaces = int(data[i - 1] == 0x20)
                    o += run - spaces
                    last = OTHER
                    continue
            point, size = decode(data, i)
            entry = np.int64(entries[point]) if size > 1 else OTHER
            folding = entry >> (KIND_BITS + CLASS_BITS)
            for k in range(np.int64(pool[folding]) if folding else 1):
                if folding:
                    point = np.int64(pool[folding + 1 + k])
                    entry = np.int64(entries[point])
                kind = entry & KIND
                if kind == SPACE or point == 0x20 or 9 <= point <= 13:
                    spaces += 1
                    feeds += int(point == 10)
                    continue
                if spaces:
                    if newlines and feeds >= newlines:
                        if o > begin:
                            o = _put_byte(10, i, out, o, origin)
                    elif o > begin and last != UNIT and kind != UNIT:
                        o = _put_byte(0x20, i, out, o, origin)
                    spaces = feeds = 0
                if point < 0x80:
                    o = _put_byte(point + 0x20 if 0x41 <= point <= 0x5A else point, i, out, o, origin)
                else:
                    o = _put(point, i, entries, out, begin, o, origin)
                if kind != MARK:
                    last = kind
            i += size
        ends[t] = o
    return o
