"""Code point -> what a form of a text has in its place (see `engine.text`), as kernels look it up. Needs no numba.

An entry packs the kind of the character (3 bits), its canonical combining class (8 bits) and where in the pool its folding
begins (the rest; 0: it stays itself). Foldings are fully decomposed, so that a kernel has nothing to compose: two texts have the
same normal form just if they have the same decomposed one.

To ask `regex` and `unicodedata` for all of it takes .16 CPU seconds in every process, so the table is kept, as machine code is.
"""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import regex
import xxhash

from engine.store.whole_file import whole_file
from engine.text import normal_form
from engine.text.normal_form import folded
from engine.text.words import LETTERS, MARKS, UNITS
from pipelines.kernels.compiled import cache_folders

Array = np.ndarray[Any, np.dtype[Any]]
CODE_POINTS = 0x110000
OTHER, SPACE, LETTER, UNIT, MARK = range(5)
KIND_BITS, CLASS_BITS = 3, 8
KIND, CLASS = (1 << KIND_BITS) - 1, (1 << CLASS_BITS) - 1
# A character that is replaced takes at most so many times its bytes, spaces around units included.
GROWTH = 12

# Everything whose folding, decomposed, is not itself; what a Python older than `regex` does not know yet stays itself.
_REPLACED: Any = regex.compile(r"[\p{NFKD_QC=No}\p{Changes_When_Casefolded}\p{DI}]")

_FOLDED = Path(normal_form.__file__)  # says what becomes of a character


@cache
def form_table() -> tuple[Array, Array]:
    """(entries, pool): uint32 one a code point; int32, each folding as its length and its code points."""
    versions = [unicodedata.unidata_version, regex.__version__, LETTERS, MARKS, UNITS, str(_REPLACED.pattern)]
    digest = hashlib.sha256(
        " ".join(versions).encode() + Path(__file__).read_bytes() + _FOLDED.read_bytes()
    ).hexdigest()
    files = [folder / f"form_table-{digest[:24]}" for folder in cache_folders()]
    for file in files:
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if len(data) > 4 * CODE_POINTS and xxhash.xxh3_64_digest(memoryview(data)[8:]) == data[:8]:
                words = np.frombuffer(data, np.uint32, offset=8)
                return words[:CODE_POINTS], words[CODE_POINTS:].view(np.int32)
    entries, pool = _made()
    data = entries.tobytes() + pool.tobytes()
    for file in files:
        with contextlib.suppress(OSError):
            with whole_file(file, shared=True) as partial:
                partial.write_bytes(xxhash.xxh3_64_digest(data) + data)
            break
    return entries, pool


def _made() -> tuple[Array, Array]:
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
