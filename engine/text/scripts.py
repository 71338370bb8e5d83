"""Which scripts a text is written in."""

from __future__ import annotations

import unicodedata
from functools import cache


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters, by the first words of their names in Unicode (LATIN, CYRILLIC, CJK, HIRAGANA, ...)."""
    return {_script(letter) for letter in set(text) if letter.isalpha()}


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
