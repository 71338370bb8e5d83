"""What a word is, wherever words are compared or counted: the default rules of UAX #29 (Unicode text segmentation).

A word is a run of letters, digits and connectors (`_`), with the marks that follow them. Two tailorings, which UAX #29 (6.3) leaves to
its users:

  - Scripts that are written without spaces are taken letter by letter, each with its marks: ideographs, kana, and the scripts
    whose line breaks need a dictionary (line break class SA: Thai, Lao, Khmer, Burmese and their kin). UAX #29 does so itself for all of
    them but katakana; no dictionary means that a passage has the same words wherever it stands.
  - Punctuation never joins (rules WB6, 7, 11, 12 are left out): `don't` and `3.14` are two words each, and so is `don’t`.

Symbols and emoji are no words. A mark that a line break has torn off a letter of such a script is put back.
"""

from __future__ import annotations

import re
from typing import Any, cast

import regex

from engine.text.normal_form import normal_form

# Sets of characters, as `regex` spells them; what is in two of them is of the later. A mark that follows no word is none.
LETTERS = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}\p{WB=ExtendNumLet}"
UNITS = r"\p{Ideographic}\p{Script=Han}\p{Script=Hiragana}\p{WB=Katakana}\p{LB=SA}"
MARKS = r"\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}\p{DI}"
# A Thai word has some four characters, marks included, where a Chinese one has less than two.
LETTERS_A_WORD = 3

_ASCII_WORD, _ASCII_TOKEN = re.compile(r"[0-9a-z_]+"), re.compile(r"\S+")
_UNIT, _LETTER = rf"[[{UNITS}]--[{MARKS}]]", rf"[[{LETTERS}]--[{UNITS}]]"
_WORD = regex.compile(rf"{_UNIT}[{MARKS}]*+|{_LETTER}[{_LETTER}{MARKS}]*+", regex.V1)
_SPACED_MARK = regex.compile(rf"\s[{MARKS}]", regex.V1)
_TORN_MARKS = regex.compile(rf"{_UNIT}[{MARKS}]*+(?:\s++[{MARKS}]++)++", regex.V1)
_SYLLABIC = regex.compile(r"\p{LB=SA}")
_TOKEN = regex.compile(rf"{_UNIT}[{MARKS}]*+|[^\s\x1c-\x1f{_UNIT}]++", regex.V1)


def words(text: str) -> list[str]:
    """The words of a text, in their normal form."""
    form = normal_form(text)
    if form.isascii():
        return _ASCII_WORD.findall(form)
    if _SPACED_MARK.search(form):
        form = normal_form(_TORN_MARKS.sub(lambda torn: "".join(torn[0].split()), form))
    return cast(Any, _WORD).findall(form)


def weight(found: list[str]) -> float:
    """How many words of a language with spaces these words amount to: of Thai, Lao, Khmer and Burmese three letters are one."""
    return sum(1 / LETTERS_A_WORD if _SYLLABIC.match(word) else 1.0 for word in found)


def tokens(text: str) -> list[str]:
    """The text as it stands between white space, punctuation included; scripts without spaces letter by letter."""
    return [text[begin:end] for begin, end in token_spans(text)]


def token_spans(text: str) -> list[tuple[int, int]]:
    """Where each of `tokens` begins and ends."""
    pattern: Any = _ASCII_TOKEN if text.isascii() else _TOKEN
    return [match.span() for match in pattern.finditer(text)]
