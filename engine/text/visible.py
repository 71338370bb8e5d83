"""Text from elsewhere as something to look at: what would move a cursor, ring, colour, hide or turn text round is shown instead."""

from __future__ import annotations

import re

_VARIES = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
# C0 and C1 controls, DEL; what turns the direction of writing (Trojan Source, CVE-2021-42574); what is not seen at all (Unicode's
# default ignorables, fillers, annotations, tags); halves of surrogate pairs, which no terminal can be sent.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff0-\uffff\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
    # A joiner belongs to the letter or emoji before it, and is there to hide where that is ASCII or nothing; a variation selector,
    # where it follows another one.
    f"|(?<![\u00a9-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\ud7ff\uf900-\ufefe\U0001f000-\U000e01ef])[\u200c\u200d]"
    f"|(?:(?<![#*0-9\u00a9-\ufdff\U00010000-\U000e00ff])|(?<=[{_VARIES}]))[{_VARIES}]"
)  # fmt: skip
_KEPT = "\n\t"


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with every such character as its code (`\\x1b`, `\\u202e`).

    Args:
        one_line: line breaks and tabs as their codes, too: for names.
    """
    if text.isascii() and text.isprintable():
        return text

    def code(match: re.Match[str]) -> str:
        character = match[0]
        if character in _KEPT and not one_line:
            return character
        return character.encode("unicode_escape").decode()

    return _UNSEEN.sub(code, text)
