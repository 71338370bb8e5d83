r"""Where pretokens end, by the regular expressions of four families of tokenizers (see `pipelines.tokenize.pretokens`).

`mark` says of 64 bytes at a time what kinds of character they are, a bit a byte; a run of letters then ends at the next bit that isn't set, however
long it is. The bytes of a character are all of its kind, so a run never ends within one.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipelines.kernels.bytemasks import BLOCK, ONE, equals, trailing_zeros, within
from pipelines.kernels.characters import LETTER, LOWER, NUMBER, OTHER, UNKNOWN, UPPER, WHITE
from pipelines.kernels.word_hashes import U64

KINDS = 6  # masks of a block, in the order of the kinds' bits
LETTERS, NUMBERS, WHITES, OTHERS, UPPERS, LOWERS = range(KINDS)
# Families.
GPT2, DIGITS, LLAMA3, QWEN2, O200K = range(5)
NONE = -1  # a character is unknown, or what it does where it stands is left to the tokenizer
SPACE, APOSTROPHE, SLASH, CR, LF = 0x20, 0x27, 0x2F, 0x0D, 0x0A


@numba.njit(cache=True, nogil=True, inline="always")
def character(data: Any, i: int) -> Any:
    """(code point, bytes) at a byte."""
    byte = np.int64(data[i])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        return (byte & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F), 2
    if byte < 0xF0:
        return (byte & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F), 3
    high = (byte & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
    return high | (np.int64(data[i + 2]) & 0x3F) << 6 | (np.int64(data[i + 3]) & 0x3F), 4


@numba.njit(cache=True, nogil=True)
def mark(data: Any, size: int, kinds: Any, masks: Any) -> int:
    """Fill in the masks of `data[:size]`, which 64 readable bytes follow; what follows may be marked as anything. Returns whether all characters
    are known, and white space and numbers are ASCII (see `begin_gpt2`).

    Args:
        kinds: code point -> bits (`pipelines.kernels.characters.pretokens_table`).
        masks: out, uint64, `KINDS` for each 64 bytes and for 64 more.
    """
    after = 0  # where the next character begins
    plain = 1
    for word in range((size + BLOCK - 1) // BLOCK):
        at, m = word * BLOCK, word * KINDS
        if within(data, at, 0x80, 0xFF) == U64(0):
            upper, lower = within(data, at, 0x41, 0x5A), within(data, at, 0x61, 0x7A)
            number = within(data, at, 0x30, 0x39)
            white = within(data, at, 0x09, 0x0D) | equals(data, at, 0x20)
            masks[m + LETTERS], masks[m + NUMBERS], masks[m + WHITES] = upper | lower, number, white
            masks[m + OTHERS] = ~(upper | lower | number | white)
            masks[m + UPPERS], masks[m + LOWERS] = upper, lower
            continue
        if after <= at:
            after = at
            for k in range(KINDS):
                masks[m + k] = U64(0)
        while after < min(at + BLOCK, size):
            point, length = character(data, after)
            kind = kinds[point]
            if length > 1 and kind & (WHITE | NUMBER | UNKNOWN):
                plain = 0
            first, last = after - at, min(after + length - at, BLOCK)
            bits = ((U64(1) << U64(last - first)) - U64(1)) << U64(first)
            over = after + length - at - BLOCK  # bytes of it that stand in the next block
            for k in range(KINDS):
                one = U64(kind >> k & 1)
                masks[m + k] |= bits * one
                if over >= 0:
                    masks[m + KINDS + k] = ((U64(1) << U64(over)) - U64(1)) * one
            after += length
    return plain


@numba.njit(cache=True, nogil=True)
def begin_gpt2(data: Any, size: int, family: int, masks: Any, begins: Any) -> None:
    """Where pretokens begin, a bit a byte, by `GPT2` or `DIGITS` and but for contractions, in a text of which `mark` says that it is plain.

    A run of one kind begins a pretoken, unless a space stands before it, which does then; of white space the last character does, which may
    belong to what follows. With `DIGITS` each begins one, and none takes a space.
    """
    before_l = before_n = before_w = before_o = before_s = U64(0)
    top = U64(BLOCK - 1)
    blocks = (size + BLOCK - 1) // BLOCK
    for word in range(blocks):
        m = word * KINDS
        letters, numbers, white, others = masks[m + LETTERS], masks[m + NUMBERS], masks[m + WHITES], masks[m + OTHERS]
        space = equals(data, word * BLOCK, SPACE)
        after_w = white >> ONE
        after_n = numbers >> ONE
        if word + 1 < blocks:
            after_w |= masks[m + KINDS + WHITES] << top
            after_n |= masks[m + KINDS + NUMBERS] << top
        new = (letters & ~(letters << ONE | before_l)) | (others & ~(others << ONE | before_o))
        inside = white << ONE | before_w
        last = white & inside & ~after_w
        spaced = space << ONE | before_s
        if family == DIGITS:
            begins[word] = (new & ~spaced) | numbers | (white & ~inside) | (last & ~after_n)
        else:
            new |= numbers & ~(numbers << ONE | before_n)
            begins[word] = (new & ~spaced) | (white & ~inside) | last
        before_l, before_n, before_w = letters >> top, numbers >> top, white >> top
        before_o, before_s = others >> top, space >> top


@numba.njit(cache=True, nogil=True, inline="always")
def next_begin(data: Any, i: int, end: int, begins: Any) -> int:
    """Where the pretoken ends that begins at `i`, by `begin_gpt2`."""
    if data[i] == APOSTROPHE:
        size = contraction(data, i, end, 0)
        if size:
            return i + size
    stop = i + 1
    m = stop >> 6
    rest = begins[m] >> U64(stop & 63)
    if rest != U64(0):
        stop += trailing_zeros(rest)
    else:
        stop |= 63
        stop += 1
        while stop < end:
            m += 1
            if begins[m] != U64(0):
                stop += trailing_zeros(begins[m])
                break
            stop += BLOCK
    if stop >= end:
        return end
    if stop == end - 1 and _white(data[stop]) and _white(data[stop - 1]):
        return end  # white space that ends a text is one pretoken, whatever the next text begins with
    return stop


@numba.njit(cache=True, nogil=True, inline="always")
def _white(byte: Any) -> Any:
    return byte == SPACE or (byte >= 0x09 and byte <= 0x0D)


@numba.njit(cache=True, nogil=True, inline="always")
def run_end(masks: Any, kind: int, i: int, end: int) -> int:
    """Where a run ends that is under way at `i`: at `end` at the latest."""
    m = (i >> 6) * KINDS + kind
    rest = ~masks[m] >> U64(i & 63)
    if rest != U64(0):
        return min(i + trailing_zeros(rest), end)
    i = (i | 63) + 1
    while i < end:
        m += KINDS
        if ~masks[m] != U64(0):
            return min(i + trailing_zeros(~masks[m]), end)
        i += BLOCK
    return end


@numba.njit(cache=True, nogil=True, inline="always")
def kind_at(data: Any, i: int, kinds: Any) -> Any:
    """(bits, bytes) of the character at a byte."""
    if data[i] < 0x80:
        return np.int64(kinds[data[i]]), 1
    point, length = character(data, i)
    return np.int64(kinds[point]), length


@numba.njit(cache=True, nogil=True, inline="always")
def last_character(data: Any, end: int) -> int:
    """Where the character begins that ends at `end`."""
    at = end - 1
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@numba.njit(cache=True, nogil=True, inline="always")
def contraction(data: Any, i: int, end: int, fold: int) -> int:
    """Bytes of `'s|'t|'re|'ve|'m|'ll|'d` at an apostrophe, 0 if there is none; `fold` is the bit by which capitals differ, or 0.
    -1: a long s, which is an s where case does not count.
    """
    if i + 1 >= end:
        return 0
    a = data[i + 1] | fold
    if a == 0x73 or a == 0x74 or a == 0x6D or a == 0x64:
        return 2
    if i + 2 < end:
        b = data[i + 2] | fold
        if ((a == 0x72 or a == 0x76) and b == 0x65) or (a == 0x6C and b == 0x6C):
            return 3
        if fold and data[i + 1] == 0xC5 and data[i + 2] == 0xBF:
            return -1
    return 0


@numba.njit(cache=True, nogil=True)
def gpt2_end(data: Any, i: int, end: int, kinds: Any, masks: Any) -> int:
    r"""`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, tried in this order."""
    kind, _ = kind_at(data, i, kinds)
    at = i
    if data[i] == APOSTROPHE:
        size = contraction(data, i, end, 0)
        if size:
            return i + size
    elif data[i] == SPACE and i + 1 < end:
        ahead, _ = kind_at(data, i + 1, kinds)
        if ahead & WHITE == 0:
            kind, at = ahead, i + 1
    if kind & WHITE:
        stop = run_end(masks, WHITES, i, end)
        if stop < end:  # all but the last, which may belong to what follows
            last = last_character(data, stop)
            if last > i:
                return last
        return stop
    if kind & UNKNOWN:
        return NONE
    run = LETTERS if kind & LETTER else NUMBERS if kind & NUMBER else OTHERS
    return run_end(masks, run, at, end)


@numba.njit(cache=True, nogil=True, inline="always")
def white_end(data: Any, i: int, end: int, masks: Any) -> int:
    r"""`\s*[\r\n]+|\s+(?!\S)|\s+` at white space."""
    stop = run_end(masks, WHITES, i, end)
    at = stop - 1
    while at >= i and data[at] != LF and data[at] != CR:
        at -= 1
    if at >= i:
        return at + 1
    if stop < end:
        last = last_character(data, stop)
        if last > i:
            return last
    return stop


@numba.njit(cache=True, nogil=True, inline="always")
def word_end(data: Any, i: int, end: int, kinds: Any, masks: Any) -> int:
    r"""`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` and a contraction."""
    stop = run_end(masks, UPPERS, i, end)
    ahead = 0
    if stop < end:
        ahead, _ = kind_at(data, stop, kinds)
    if ahead & LOWER:
        stop = run_end(masks, LOWERS, stop, end)
    else:  # back to the last that may end a word in small letters, if there is one
        at = stop
        while at > i:
            last = last_character(data, at)
            kind, _ = kind_at(data, last, kinds)
            if kind & LOWER:
                stop = at
                break
            at = last
    if stop < end and data[stop] == APOSTROPHE:
        size = contraction(data, stop, end, 0x20)
        return NONE if size < 0 else stop + size
    return stop


@numba.njit(cache=True, nogil=True)
def cl100k_end(family: int, data: Any, i: int, end: int, kinds: Any, masks: Any) -> int:
    r"""`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.

    Qwen takes digits one by one. In o200k contractions follow words, a word has its capitals first, and `/` may follow symbols as line feeds do.
    """
    kind, size = kind_at(data, i, kinds)
    byte = data[i]
    if kind & UNKNOWN:
        return NONE
    if byte == APOSTROPHE and family != O200K:
        length = contraction(data, i, end, 0x20)
        if length:
            return NONE if length < 0 else i + length
    if kind & LETTER:
        return word_end(data, i, end, kinds, masks) if family == O200K else run_end(masks, LETTERS, i, end)
    if kind & NUMBER:
        stop = i + size
        if family == QWEN2:
            return stop
        for _ in range(2):
            if stop >= end:
                break
            kind, size = kind_at(data, stop, kinds)
            if kind & NUMBER == 0:
                break
            stop += size
        return stop
    if kind & (UPPER | LOWER):  # a mark where a pretoken begins
        return NONE
    at = i + size
    ahead = 0
    if at < end and byte != LF and byte != CR:
        ahead, _ = kind_at(data, at, kinds)
        if ahead & UNKNOWN:
            return NONE
        if family == O200K:
            if ahead & (UPPER | LOWER):
                return word_end(data, at, end, kinds, masks)
        elif ahead & LETTER:
            return run_end(masks, LETTERS, at, end)
    if kind & WHITE and not (byte == SPACE and ahead & OTHER):
        return white_end(data, i, end, masks)
    stop = run_end(masks, OTHERS, at if kind & WHITE else i, end)
    while stop < end and (data[stop] == LF or data[stop] == CR or (family == O200K and data[stop] == SLASH)):
        stop += 1
    return stop


@numba.njit(cache=True, nogil=True, inline="always")
def pretoken_end(family: int, data: Any, i: int, end: int, kinds: Any, masks: Any) -> int:
    """Where the pretoken ends that begins at `i` (< `end`, where the text ends); `NONE` if the tokenizer itself must tell."""
    if family == GPT2:
        return gpt2_end(data, i, end, kinds, masks)
    if family != DIGITS:
        return cl100k_end(family, data, i, end, kinds, masks)
    kind, size = kind_at(data, i, kinds)  # digits stand alone, and what is between them is cut by itself
    if kind & NUMBER:
        return i + size
    stop = i
    m = (i >> 6) * KINDS + NUMBERS
    rest = masks[m] >> U64(i & 63)
    if rest != U64(0):
        stop = i + trailing_zeros(rest)
    else:
        stop = (i | 63) + 1
        while stop < end:
            m += KINDS
            if masks[m] != U64(0):
                stop += trailing_zeros(masks[m])
                break
            stop += BLOCK
    return gpt2_end(data, i, min(stop, end), kinds, masks)
