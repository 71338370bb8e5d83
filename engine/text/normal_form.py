"""Text as it is compared: two spellings of the same text have one form.

The form is Unicode's NFKC_Casefold (The Unicode Standard, 3.13, R5; UAX #44): every character is replaced by its compatibility
equivalent with full case folding (`ﬁ` by `fi`, `Ａ` by `a`, `ß` by `ss`), default-ignorable ones (zero-width spaces and
joiners, soft hyphens, variation selectors, byte order and bidirectional marks, Hangul fillers) by nothing, and the result is
composed (NFC). It is stable: the form of a form is itself. What is stored is never the form.
"""

from __future__ import annotations

import unicodedata

import regex

IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


def normal_form(text: str) -> str:
    """The form under which a text is compared; that of an ASCII text is its lower case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text.translate(_FOLDED))


def folded(character: str) -> str:
    """NFKC_Casefold of one character: folded, made compatible and rid of what is ignorable until nothing changes."""
    before, after = "", character
    while after != before:
        before = after
        after = IGNORABLE.sub("", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", before).casefold()))
    return after


class _Folded(dict[int, str]):
    """Code point -> what replaces it, worked out when it is first met."""

    def __missing__(self, point: int) -> str:
        self[point] = made = folded(chr(point))
        return made


_FOLDED = _Folded()
