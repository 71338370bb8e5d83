"""Texts as sequences of words (Unicode's UAX #29), folded so that a word is found however it is written.

Queries and texts go through the same functions, so every word of a text finds that text. Segments come first and
folding second: folding may turn one letter into several (ß, a ligature) or drop one (a soft hyphen).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import regex

PART = "\0"  # between the parts of a text that a phrase must not bridge; never in a word

# UAX #29 for ASCII alone, several times as fast as the whole of it: . : ' join letters, . , ; ' join digits, all else but _
# parts words.
_JOINERS = ".:',;"
_IN_WORDS = f"abcdefghijklmnopqrstuvwxyz0123456789_{_JOINERS}"
_LOWERED = str.maketrans({c: c.lower() if c.lower() in _IN_WORDS else " " for c in map(chr, range(128))})
_PARTING = re.compile(r"[.:',;](?!(?<=[a-z][.:'])[a-z]|(?<=[0-9][.,;'])[0-9])")
_UNDERSCORES = re.compile(r"(?<![a-z0-9_])_+(?![a-z0-9_])")  # alone they are no word
_LONG = 40  # characters between spaces, in a script without them perhaps: not kept
_BOUNDARY = regex.compile(r"(?V1w)\b")  # with `w`, a boundary is UAX #29's
_WORD_LIKE = regex.compile(r"[\p{Alphabetic}\p{N}\p{Extended_Pictographic}\p{Regional_Indicator}]")
# Soft hyphens, joiners, variation selectors, marks upon punctuation; but a zero-width space parts words, and joiners make one emoji of two.
_IGNORABLE = regex.compile(
    r"(?V1)[\p{Default_Ignorable_Code_Point}--[\u200b\u200d]]|\u200d(?!\p{Extended_Pictographic})"
    r"|(?<![\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d|(?<=\p{P})\p{M}+"
)


def words(text: str) -> list[str]:
    """The words, numbers and emoji of a text, folded, in order."""
    return spaced(text).split()


def spaced(text: str) -> str:
    """A text's words, each between spaces: `" word "` is in it if the word is."""
    if text.isascii():
        return f" {' '.join(_ascii_words(text))} "
    # No word goes across a space, and what stands between spaces comes again and again.
    chunks = [_kept_chunk(chunk) if len(chunk) < _LONG else _chunk(chunk) for chunk in text.split(" ")]
    return f" {' '.join(filter(None, chunks))} "


def _ascii_words(text: str) -> list[str]:
    text = _PARTING.sub(" ", text.translate(_LOWERED))
    return (_UNDERSCORES.sub(" ", text) if "_" in text else text).split()


def _chunk(chunk: str) -> str:
    if chunk.isascii():
        return " ".join(_ascii_words(chunk))
    # Where words end depends neither on how letters are composed nor on what is not seen; `regex` lets it.
    chunk = _IGNORABLE.sub("", unicodedata.normalize("NFC", chunk)).replace("i\u0307", "i")  # the last: İ in lower case
    segments = _BOUNDARY.split(f" {chunk}")  # a mark at its begin is the space's, and no part of what follows
    return " ".join([word for segment in segments if (word := folded(segment))])


_kept_chunk = lru_cache(maxsize=1 << 17)(_chunk)


@lru_cache(maxsize=1 << 16)
def folded(segment: str) -> str:
    """One segment without case, compatibility forms and what is not seen; empty if it is no word."""
    if not _WORD_LIKE.search(segment):
        return ""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", segment).casefold())
    text = text.replace("\u200d", "").replace("’", "'").replace("i\u0307", "i")
    # Some letters fold to several words; a quotation mark is part of Hebrew abbreviations, and of queries. `regex` leaves
    # an apostrophe before a vowel at the vowel (an old rule for French), which UAX #29 does not; a letter may fold to a dot.
    return " ".join(text.strip("'·").replace('"', " ").split())
