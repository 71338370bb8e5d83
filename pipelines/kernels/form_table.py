"""Code point -> what a form of a text has in its place (see `engine.text`), as kernels look it up. Needs no numba.

An entry packs the kind of the character (3 bits), its canonical combining class (8 bits) and where in the pool its folding
begins (the rest; 0: it stays itself). Foldings are fully decomposed, so that a kernel has nothing to compose: two texts have the
same normal form just if they have the same decomposed one.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np
import regex

from engine.text.normal_form import folded
from engine.text.words import LETTERS, MARKS, UNITS

Array = np.ndarray[Any, np.dtype[Any]]
CODE_POINTS = 0x110000
OTHER, SPACE, LETTER, UNIT, MARK = range(5)
KIND_BITS, CLASS_BITS = 3, 8
KIND, CLASS = (1 << KIND_BITS) - 1, (1 << CLASS_BITS) - 1
# A character that is replaced takes at most so many times its bytes, spaces around units included.
GROWTH = 12

# Everything whose folding, decomposed, is not itself; what a Python older than `regex` does not know yet stays itself.
_REPLACED = regex.compile(r"[\p{NFKD_QC=No}\p{Changes_When_Casefolded}\p{DI}]")


@cache
def form_table() -> tuple[Array, Array]:
    """(entries, pool): uint32 one a code point; int32, each folding as its length and its code points."""
    points = np.concatenate([np.arange(0xD800), np.arange(0xE000, CODE_POINTS)]).astype("<u4")
    characters = points.tobytes().decode("utf-32-le")
    entries = np.zeros(CODE_POINTS, np.uint32)
    for kind, members in (
        (SPACE, r"\p{White_Space}"), (LETTER, f"[{LETTERS}]"), (UNIT, f"[{UNITS}]"), (MARK, f"[{MARKS}]"),
    ):  # fmt: skip
        for match in regex.finditer(f"{members}+", characters):
            entries[points[match.start()] : int(points[match.end() - 1]) + 1] = kind
    for match in regex.finditer(r"\p{M}", characters):
        entries[ord(match[0])] |= unicodedata.combining(match[0]) << KIND_BITS
    pool = [0]
    for character in _REPLACED.findall(characters):
        folding = unicodedata.normalize("NFD", folded(character))
        if folding != character:
            entries[ord(character)] |= len(pool) << (KIND_BITS + CLASS_BITS)
            pool += [len(folding), *map(ord, folding)]
    return entries, np.array(pool, np.int32)
