"""Code point -> kind of character, by Python's Unicode tables: what kernels look characters up in. Needs no numba."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np

from pipelines.kernels.form_table import CODE_POINTS, KIND, MARK, UNIT, form_table

Table = np.ndarray[Any, np.dtype[np.uint8]]

# Of statistics: bits.
SPACE, ALPHA, BULLET, CLOSER, UNIT_BIT, MARK_BIT = 1, 2, 4, 8, 16, 32
BULLETS = "•‣▶◀◦■□▪▫–-*"
CLOSERS = "\"'”’)]"  # may follow the end of a sentence

# Of pretokens: bits. UPPER is what a word may have before its small letters, LOWER what it may have after its capitals, both where there is no
# case, and marks.
LETTER, NUMBER, WHITE, OTHER, UPPER, LOWER, UNKNOWN = 1, 2, 4, 8, 16, 32, 64
WHITE_SPACE = (
    *range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000,
)  # fmt: skip


@cache
def statistics_table() -> Table:
    """What Python's `str.isspace` and `str.isalpha` say, the sets above, and what words are made of, as bits."""
    table = np.zeros(CODE_POINTS, np.uint8)
    for point in range(CODE_POINTS):
        character = chr(point)
        if character.isalpha():
            table[point] = ALPHA
        elif character.isspace():
            table[point] = SPACE
    for characters, bit in ((BULLETS, BULLET), (CLOSERS, CLOSER)):
        table[[ord(c) for c in characters]] |= bit
    kinds = form_table()[0] & KIND
    table[kinds == UNIT] |= UNIT_BIT
    table[kinds == MARK] |= MARK_BIT
    return table


@cache
def pretokens_table() -> Table:
    r"""\p{L}, \p{N}, \s or any other, as bits, with whether it is a capital or a small letter; or one that this Python does not know."""
    told = "".join(map(unicodedata.category, map(chr, range(CODE_POINTS)))).encode()  # two letters each
    first, second = np.frombuffer(told, np.uint8).reshape(-1, 2).T
    table = np.full(CODE_POINTS, OTHER, np.uint8)
    table[first == ord("N")] = NUMBER
    table[first == ord("M")] = OTHER | UPPER | LOWER
    for case, bits in (("u", UPPER), ("t", UPPER), ("l", LOWER), ("m", UPPER | LOWER), ("o", UPPER | LOWER)):
        table[(first == ord("L")) & (second == ord(case))] = LETTER | bits
    table[(first == ord("C")) & (second == ord("n"))] = UNKNOWN
    table[list(WHITE_SPACE)] = WHITE
    return table
